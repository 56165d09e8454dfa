"""The loss of a model's output where the model's own will not do."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..anatomy import Refused
from ..tasks.batches import IGNORED, Batch

SPAN = ("start_positions", "end_positions")


def loss_of(output: Any) -> Tensor:
    """The model's own loss.

    Raises:
        Refused: It has none, because it has no task head or the batch no labels.
    """
    loss = getattr(output, "loss", None)
    if isinstance(output, tuple) and isinstance(output[0], Tensor) and output[0].dim() == 0:
        loss = output[0]  # of a model whose config says return_dict: false
    if loss is None:
        raise Refused("the model gives no loss: it needs a task head, and labels in every batch.")
    return loss


def span_loss(output: Any, batch: Batch, present: Tensor) -> Tensor:
    """Cross-entropy of start and end positions over the tokens that are there.

    `transformers` takes the softmax over padding too, so that its loss depends on what padding holds.

    Args:
        output: With `start_logits` and `end_logits`, `[rows, length]`.
        batch: With `start_positions` and `end_positions`, int64 `[rows]`; -100 and places without a token are left out.
        present: Which places hold a token, bool `[rows, length]`.
    """
    losses = [
        F.cross_entropy(logits.float().masked_fill(~present, -1e9), _inside(batch[name], present))
        for logits, name in zip((output.start_logits, output.end_logits), SPAN, strict=True)
    ]
    return (losses[0] + losses[1]) / 2


def _inside(positions: Tensor, present: Tensor) -> Tensor:
    """Positions where they are those of a token, -100 elsewhere."""
    places = positions.clamp(0, present.shape[1] - 1)
    there = (positions == places) & present.gather(1, places[:, None]).squeeze(1)
    return positions.where(there, IGNORED)
