"""Steps of pre-training: the vocabulary projection on masked places only, every token of a step weighing the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..anatomy.modes import evaluating
from ..tasks.batches import IGNORED, Batch
from ..tasks.mlm import Objective, Sums, without_padding
from . import sharded
from .fast import RaggedStep
from .pack import Packed
from .precision import autocast
from .ragged import set_layout
from .ranks import ALONE, Ranks
from .step import EagerStep, to_device

SHARES = "step_shares"
"""What a masked token and a row of this step are worth: fp32 `[2]`, so that a captured step can take new ones."""
APART = ("masked_positions", "masked_labels", SHARES)
"""Entries of a batch that have no place in a row."""


class CommonStep(EagerStep):
    """What steps of pre-training share: all processes of a job take one together.

    Args:
        shard: The device to compute on, where the model is to be cut up over the processes; whole in each when None.
        *args: As `EagerStep`.
        **kwargs: As `EagerStep`; of `ranks`, each brings its own micro-batches.

    Raises:
        Refused: The model has no head for masked-language modelling.
    """

    def __init__(self, *args: Any, shard: torch.device | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective = Objective(self.model, accuracy=False)
        self.sharded = shard is not None
        if shard is not None:
            sharded.shard(self, shard)

    @property
    def feeds(self) -> int:
        """All of them."""
        return self.ranks.world

    def begin(self, *, last: bool) -> None:
        """Parts of the gradient are summed behind the last micro-batch."""
        if self.sharded:
            sharded.last_micro_batch(self.model, last)

    def combine(self, loss: Tensor) -> Tensor:
        """Sum gradients and loss over all processes: each has weighed its own by the tokens of all."""
        if not self.sharded:
            return super().combine(loss)
        params = self.gates.parameters() if self.gates else []  # whose gradients alone are not summed yet
        self.ranks.add([*(parameter.grad for parameter in params if parameter.grad is not None), loss])
        return loss

    def clip(self, most: float) -> None:
        """By the norm of the whole gradient."""
        if self.sharded:
            sharded.clip(self.clipped, most)
        else:
            super().clip(most)

    def mine(self, micro_batches: Sequence[Batch]) -> list[tuple[Batch, float]]:
        """All of them, which know what their tokens are worth."""
        return [(batch, 1.0) for batch in with_shares(micro_batches, self.ranks)]

    def shares(self, prepared: Sequence[Any]) -> list[float]:
        """Nothing is left to weigh."""
        return [1.0] * len(prepared)


class MaskedStep(CommonStep):
    """`EagerStep` for batches of `data.stream`; arguments and refusals are those of `CommonStep`."""

    def loss(self, batch: Any) -> Tensor:
        """What one micro-batch adds to the step's loss, scalar."""
        inputs = dict(batch[0])
        shares = inputs.pop(SHARES)
        with autocast(self.precision, self.device):
            return weighed(self.objective(inputs), shares)


class RaggedMaskedStep(CommonStep, RaggedStep):
    """The same without padding; arguments are those of `CommonStep` and `RaggedStep`.

    Raises:
        Refused: The model has no head for masked-language modelling, or cannot run without padding.
    """

    def follow(self, device: torch.device) -> None:
        """The decoder reaches every row of the word embedding, and so do the gradients of other processes."""
        super().follow(device)
        self.table = None

    def lay_out(self, batch: Batch) -> Packed:
        """One micro-batch without padding; masked places are counted in it."""
        packed = super().lay_out({name: value for name, value in batch.items() if name not in APART})
        apart = {name: batch[name] for name in APART}
        apart["masked_positions"] = without_padding(batch["masked_positions"], batch["attention_mask"])
        return replace(packed, inputs={**packed.inputs, **apart})

    def forward(self, inputs: Batch, bounds: Tensor, longest: int, lengths: tuple[int, ...]) -> Tensor:
        """What a packed batch adds to the step's loss; the model is in its packed state."""
        inputs = dict(inputs)
        shares = inputs.pop(SHARES)
        set_layout(self.kernel, bounds, longest, inputs["input_ids"].shape[1], lengths=lengths)
        return weighed(self.objective(inputs), shares)


def with_shares(micro_batches: Sequence[Batch], ranks: Ranks = ALONE) -> list[Batch]:
    """Micro-batches that know what their tokens and rows are worth in the step: the gradient of one large batch.

    Args:
        micro_batches: Of this process.
        ranks: All processes, whose micro-batches make up the step.
    """
    tokens = sum(int((batch["masked_labels"] != IGNORED).sum()) for batch in micro_batches)
    rows = sum(len(batch["input_ids"]) for batch in micro_batches)
    all_tokens, all_rows = ranks.totals([tokens, rows])
    shares = torch.tensor([1 / max(1, all_tokens), 1 / all_rows])
    return [{**batch, SHARES: shares} for batch in micro_batches]


def weighed(sums: Sums, shares: Tensor) -> Tensor:
    """Mean over masked tokens of the step, plus mean over its rows, as far as this batch goes."""
    return sums.masked * shares[0] + sums.following * shares[1]


@torch.no_grad()
def held_out(
    model: nn.Module, batches: Iterable[Batch], *, precision: Literal["bf16", "no"] = "no"
) -> dict[str, float]:
    """Loss and masked accuracy over batches that are not trained on; of a sharded model, by all processes alike.

    Returns:
        `mlm_loss`, nats a masked token; `masked_accuracy`; and with pairs `nsp_loss`, nats a row.
    """
    device = next(model.parameters()).device
    objective = Objective(model)
    totals = torch.zeros(5, device=device, dtype=torch.float64)
    try:
        with evaluating(model):
            for batch in batches:
                with autocast(precision, device):
                    sums = objective(to_device(batch, device))
                totals += torch.stack([sums.masked, sums.tokens, sums.right, sums.following, sums.rows])
    finally:
        sharded.close(model)
    masked, tokens, right, following, rows = totals.tolist()
    found = {"mlm_loss": masked / max(1, tokens), "masked_accuracy": right / max(1, tokens)}
    return {**found, "nsp_loss": following / rows} if rows else found
