"""Partial sums of the backward kernels, of all layers, finished into gradients in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 64
"""Columns one program finishes."""


@triton.jit
def _finish(  # pyright: ignore
    table, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BF16: tl.constexpr, ADD: tl.constexpr
):
    row = table + tl.program_id(0).to(tl.int64) * 5
    source = tl.load(row).to(tl.pointer_type(tl.float32))
    if BF16:
        target = tl.load(row + 1).to(tl.pointer_type(tl.bfloat16))
    else:
        target = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    stride, parts = tl.load(row + 2), tl.load(row + 3)
    column = tl.arange(0, COLUMNS)
    inside = column < tl.load(row + 4)
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    for at in range(0, parts, ROWS):
        part = at + tl.arange(0, ROWS)
        mask = (part < parts)[:, None] & inside[None, :]
        place = part.to(tl.int64)[:, None] * stride + column[None, :]
        total += tl.sum(tl.load(source + place, mask=mask, other=0.0), axis=0)
    if ADD:
        total += tl.load(target + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + column, total.to(target.dtype.element_ty), mask=inside)


class Sums:
    """Where kernels leave partial sums, and the gradients these become.

    Their places never change: a captured graph may read and write them.
    """

    def __init__(self) -> None:
        self._rooms: list[tuple[Tensor, Sequence[Tensor]]] = []
        self._tables: list[tuple[Tensor, bool]] | None = None

    def room(self, parts: int, gradients: Sequence[Tensor]) -> Tensor:
        """Room for `parts` partial sums of several gradients that are made together.

        Args:
            parts: Every one of them is written before `finish`.
            gradients: bf16 or fp32 `[width]` each, contiguous.

        Returns:
            fp32 `[parts, gradients, width]`.
        """
        first = gradients[0]
        room = torch.zeros(parts, len(gradients), first.numel(), dtype=torch.float32, device=first.device)
        self._rooms.append((room, gradients))
        self._tables = None
        return room

    def finish(self, *, add: bool) -> None:
        """Write every gradient.

        Args:
            add: Add to what the gradients hold, as for the second of several micro-batches.
        """
        if self._tables is None:
            self._tables = self._tabulate()
        for table, bf16 in self._tables:
            _finish[(len(table),)](table, ROWS=32, COLUMNS=COLUMNS, BF16=bf16, ADD=add, num_warps=4)

    def _tabulate(self) -> list[tuple[Tensor, bool]]:
        """Addresses of first partial sum and gradient, stride, parts and columns, for every `COLUMNS` columns."""
        rows: dict[bool, list[list[int]]] = {}
        for room, gradients in self._rooms:
            parts, kinds, width = room.shape
            for kind, gradient in enumerate(gradients):
                bf16 = gradient.dtype == torch.bfloat16
                for begin in range(0, width, COLUMNS):
                    source = room.data_ptr() + 4 * (kind * width + begin)
                    target = gradient.data_ptr() + gradient.element_size() * begin
                    entry = [source, target, kinds * width, parts, min(COLUMNS, width - begin)]
                    rows.setdefault(bf16, []).append(entry)
        return [
            (torch.tensor(entries, dtype=torch.int64, device=self._rooms[0][0].device), bf16)
            for bf16, entries in rows.items()
        ]
