"""The same step without padding, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..tasks.batches import Batch
from .dropout import Dropouts
from .losses import SPAN, loss_of, span_loss
from .pack import Packed, pack, refuse_unpackable, shapes
from .precision import autocast
from .ragged import Kernel, RaggedModel, no_varlen, set_layout
from .step import EagerStep, present, to_device
from .table import Table

FINEST, PARTS = 32, 8
"""Sizes of packed batches on a CPU in bf16 are so many tokens apart, and from `FINEST * PARTS` tokens on further."""
FULL = 128
"""A batch of a multiple of this keeps its size: full rows, as those of pre-training, come in one or two sizes."""


class RaggedStep(EagerStep):
    """`EagerStep` on packed rows: the same update, no padding computed.

    One deviation: dropout on attention probabilities is off, unless `exact`.

    Args:
        exact: Keep attention dropout, with padded attention between unpadded linears.
        *args: As `EagerStep`.
        **kwargs: As `EagerStep`.

    Raises:
        Refused: The model or its head cannot run without padding.
    """

    def __init__(self, *args: Any, exact: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ragged = RaggedModel(self.model)
        self.kernel: Kernel = "padded" if exact else "groups"
        half = self.precision == "bf16" and self.device.type == "cuda"
        if not exact and half and no_varlen(self.ragged.anatomy.head_size) is None:
            self.kernel = "varlen"

    def reading(self, model: nn.Module) -> EagerStep:
        """This step on another model, whose forward passes take the same prepared batches."""
        other = super().reading(model)
        assert isinstance(other, RaggedStep)
        other.ragged, other.table, other.dropouts = RaggedModel(model), None, Dropouts(model)
        return other

    def tokens(self, states: Tensor, batch: tuple[Packed, float]) -> Tensor:
        """Of hidden states as the model computes them, those of tokens, `[tokens, hidden]`."""
        return states.squeeze(0)[: self.count_tokens(batch)]  # behind them, free places

    def count_tokens(self, batch: tuple[Packed, float]) -> int:
        """How many tokens a packed micro-batch has."""
        return sum(batch[0].lengths)

    def prepare(self, micro_batches: Sequence[Batch]) -> list[tuple[Packed, float]]:
        """Pack a step's data and bring it to the device, each with its weight (`mine`).

        Raises:
            Refused: A batch is none that can be packed.
        """
        on_cpu = [{name: value.cpu() for name, value in batch.items()} for batch in micro_batches]
        for batch in on_cpu:
            refuse_unpackable(batch, self.model.config)
        batches = [{**batch, "attention_mask": present(batch)} for batch in on_cpu]
        return [(self.pack(batch), weight) for batch, weight in self.mine(batches)]

    def pack(self, batch: Batch) -> Packed:
        """One micro-batch without padding, on the device."""
        return self.move(self.lay_out(batch))

    def lay_out(self, batch: Batch) -> Packed:
        """One micro-batch without padding, on the CPU."""
        sizes = batch["attention_mask"].sum(1)
        return pack(
            batch,
            position_offset=self.ragged.position_offset,
            token_types=self.ragged.token_types,
            multiple=self.multiple(int(sizes.sum())),
            longest=int(sizes.max()),  # free places may be more: nobody reads them
        )

    def multiple(self, tokens: int) -> int:
        """What the size of a batch with so many tokens is rounded up to."""
        return apart(tokens) if self.device.type == "cpu" and self.precision == "bf16" else 1

    def move(self, packed: Packed) -> Packed:
        """Bring it to the device."""
        return Packed(
            to_device(packed.inputs, self.device), packed.bounds.to(self.device), packed.lengths, packed.longest
        )

    def shapes(self, micro_batches: Sequence[Batch]) -> list[tuple[int, int]]:
        """Every row with its own length."""
        return shapes(micro_batches)

    def follow(self, device: torch.device) -> None:
        """Compute on this device, with the parameters that the model has now."""
        super().follow(device)
        # Gradients of other processes reach every row.
        self.table = Table.of(self.model) if self.ranks.world == 1 else None
        self.dropouts = Dropouts(self.model)

    def clear(self) -> None:
        """Forget the gradients of the step before."""
        super().clear()
        if self.table is not None:
            self.table.clear()

    def clip(self, most: float) -> None:
        """Scale the model's gradients so that their norm is at most `most`; rows of zeros are not looked at."""
        if self.table is None:
            return super().clip(most)
        weight, rows = self.table.weight, self.table.touched()
        whole = weight.grad
        assert whole is not None
        part = whole[rows]
        others = [p.grad for p in self.clipped if p.grad is not None and p is not weight]
        norm = nn.utils.get_total_norm([*others, part])
        if not norm <= most:  # not a number, too
            scale = most / (norm + 1e-6)
            for gradient in (*others, part):
                gradient.mul_(scale)
            whole[rows] = part
        return None

    def loss(self, batch: tuple[Packed, float]) -> Tensor:
        """Task loss of one packed micro-batch, scalar."""
        packed = batch[0]
        table = self.table.in_place() if self.table is not None else nullcontext()
        with self.ragged.packed(), self.dropouts.quick(), table, autocast(self.precision, self.device):
            return self.forward(packed.inputs, packed.bounds, packed.longest, packed.lengths)

    def forward(self, inputs: Batch, bounds: Tensor, longest: int, lengths: tuple[int, ...]) -> Tensor:
        """Loss of a packed batch whose rows lie between `bounds`; the model is in its packed state."""
        inputs = dict(inputs)
        positions = {name: inputs.pop(name) for name in SPAN if name in inputs}
        tokens = inputs["input_ids"].shape[1]
        present = set_layout(self.kernel, bounds, longest, tokens, lengths=lengths, places=self.ragged.head == "rows")
        output: Any = self.model(**inputs)
        return span_loss(output, positions, present) if positions else loss_of(output)


def apart(tokens: int) -> int:
    """How far apart the sizes of packed batches are that oneDNN is given.

    For its products in bf16 it makes code for every shape of matrices, in about 0.3 ms, and keeps that of the last
    1,024. A ticket has as many shapes as layers: with all sizes 32 tokens apart, its code was made anew again and
    again. fp32 products need none.

    Args:
        tokens: Of a batch, without free places.

    Returns:
        A power of two, so that there are four sizes between a power of two and its double; below 256, `FINEST`.
        `FULL` for its multiples.
    """
    if tokens % FULL == 0:
        return FULL
    step = FINEST
    while step * PARTS < tokens:
        step *= 2
    return step
