"""Masked-language modelling, with next-sentence prediction where the model has a head for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy import Refused
from .batches import IGNORED, Batch

TARGETS = ("masked_positions", "masked_labels", "next_sentence_label")
"""Entries of a batch that are not the model's."""


@dataclass(frozen=True)
class Sums:
    """Loss and counts of one micro-batch, to be divided by those of a whole step. fp32 scalars on the device."""

    masked: Tensor
    """Cross-entropy of the masked tokens, summed."""
    tokens: Tensor
    """Masked tokens."""
    right: Tensor
    """Of them, how many the largest logit names; NaN where that was not asked for."""
    following: Tensor
    """Cross-entropy of next-sentence prediction, summed over rows; 0 without it."""
    rows: Tensor
    """Rows it was computed on; 0 without it."""

    @property
    def loss(self) -> Tensor:
        """The model's own loss on this batch: the mean over masked tokens, plus the mean over rows."""
        return self.masked / self.tokens.clamp_min(1) + self.following / self.rows.clamp_min(1)


class Objective:
    """The loss of a stock model, its vocabulary projection computed on masked places only.

    The head itself stays the model's: a hook hands it `[1, predictions, hidden]` instead of all places.

    Args:
        model: `...ForMaskedLM`, or `BertForPreTraining` and others with a `seq_relationship` head.
        accuracy: Count the tokens that are found. Training leaves it out: it reads all logits once more.

    Attributes:
        pairs: Whether the model has a head for next-sentence prediction.

    Raises:
        Refused: The model has no such head.
    """

    def __init__(self, model: nn.Module, *, accuracy: bool = True) -> None:
        kind = type(model).__name__
        # ElectraForPreTraining tells true tokens from false ones: another task.
        self.pairs = kind.endswith("ForPreTraining") and any(
            name.endswith("seq_relationship") for name, _ in model.named_modules()
        )
        if not (kind.endswith("ForMaskedLM") or self.pairs):
            raise Refused(f"{kind} has no head for masked-language modelling; load it with AutoModelForMaskedLM.")
        self.model = model
        self.accuracy = accuracy
        self.encoder = model.get_submodule(str(model.base_model_prefix))

    def __call__(self, batch: Batch) -> Sums:
        """Sums of one micro-batch; differentiable.

        Args:
            batch: What the model takes, with `masked_positions` and `masked_labels`, int64 `[predictions]`, counted
                through all places of `input_ids`; and `next_sentence_label`, int64 `[rows]`, where there are pairs.
        """
        inputs = {name: value for name, value in batch.items() if name not in TARGETS}
        with reading(self.encoder, batch["masked_positions"]):
            output: Any = self.model(**inputs)
        logits = output.prediction_logits if self.pairs else output.logits
        return sums(
            logits.reshape(-1, logits.shape[-1]),
            batch["masked_labels"],
            output.seq_relationship_logits if self.pairs else None,
            batch.get("next_sentence_label"),
            accuracy=self.accuracy,
        )


@contextmanager
def reading(encoder: nn.Module, positions: Tensor) -> Iterator[None]:
    """Inside, what follows the encoder sees only these places, as one row.

    Args:
        encoder: The base model; its output has `last_hidden_state` `[rows, length, hidden]`. A pooler inside it still
            sees all of it.
        positions: int64 `[predictions]`, counted through all places.
    """

    def gather(_: nn.Module, __: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)[None]
        return output

    hook = encoder.register_forward_hook(gather)
    try:
        yield
    finally:
        hook.remove()


def sums(
    logits: Tensor,
    labels: Tensor,
    next_logits: Tensor | None = None,
    next_labels: Tensor | None = None,
    *,
    accuracy: bool = True,
) -> Sums:
    """Loss and counts from logits.

    Args:
        logits: `[predictions, vocabulary]`.
        labels: int64 `[predictions]`; -100 is left out.
        next_logits: `[rows, 2]`, or None.
        next_labels: int64 `[rows]`, 1 where the second sentence is random, or None.
        accuracy: Count the tokens that are found.
    """
    known = labels != IGNORED
    masked = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    right = ((logits.argmax(-1) == labels) & known).sum().float() if accuracy else masked.new_full((), torch.nan)
    following = rows = torch.zeros_like(masked)
    if next_logits is not None and next_labels is not None:
        following = F.cross_entropy(next_logits.float(), next_labels, ignore_index=IGNORED, reduction="sum")
        rows = (next_labels != IGNORED).sum().float()
    return Sums(masked, known.sum().float(), right, following, rows)


def without_padding(positions: Tensor, attention_mask: Tensor) -> Tensor:
    """Places in a padded batch as places in the same batch packed without padding.

    Args:
        positions: int64 `[predictions]`, each at a token, or 0.
        attention_mask: Ones and zeros `[rows, length]`.
    """
    inside = attention_mask.reshape(-1).cumsum(0) - 1
    return inside[positions].clamp_min(0)
