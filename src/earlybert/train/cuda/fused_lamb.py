"""Clip and LAMB in three passes over memory, on a GPU, as `fused_adamw` has clip and AdamW in two.

One pass reads the gradients for their norm. One updates the moments and sums the squares of weights and of updates,
block by block; sums of a parameter's blocks give its trust ratio. One takes the step, the update worked out anew from
the moments, and writes the bf16 copy along. Nothing is added up in an order that may change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fused import BLOCK, Fused, clip, pointer, starts, write_copy

SUMS = 1024
"""Partial sums that are read at a time."""


@triton.jit
def _direction(p, m, v, corrections, decays, kind, eps):  # pyright: ignore
    """Algorithm 2's r + lambda x."""
    first, second = tl.load(corrections + 2 * kind), tl.load(corrections + 2 * kind + 1)
    return (m / first) / (tl.sqrt(v / second) + eps) + tl.load(decays + kind) * p


@triton.jit
def _moments(  # pyright: ignore
    table, grads, decays, clipped, l1, square, limit, corrections, weights, updates, beta1, rest1, beta2, rest2, eps,
    BLOCK: tl.constexpr, HALF: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(0).to(tl.int64)
    row = table + piece * 8
    offsets = tl.arange(0, BLOCK)
    mask = None if FULL else offsets < tl.load(row + 4)
    other = None if FULL else 0.0
    kind = tl.load(row + 5)
    first, second = pointer(row, 1, False), pointer(row, 2, False)
    g = tl.load(pointer(grads, piece, HALF) + offsets, mask=mask, other=other).to(tl.float32)
    p = tl.load(pointer(row, 0, False) + offsets, mask=mask, other=other)
    m = tl.load(first + offsets, mask=mask, other=other)
    v = tl.load(second + offsets, mask=mask, other=other)
    g = clip(g, p, kind, clipped, l1, square, limit)
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * g * g
    tl.store(first + offsets, m, mask=mask)
    tl.store(second + offsets, v, mask=mask)
    u = _direction(p, m, v, corrections, decays, kind, eps)
    if not FULL:
        u = tl.where(mask, u, 0.0)  # eps may be 0
    place = tl.load(row + 7)
    tl.store(weights + place, tl.sum(p * p))
    tl.store(updates + place, tl.sum(u * u))


@triton.jit
def _trust(starts, kinds, adapt, rates, weights, updates, sizes, SUMS: tl.constexpr):  # pyright: ignore
    slot = tl.program_id(0)
    end = tl.load(starts + slot + 1)
    w = tl.zeros([SUMS], dtype=tl.float32)
    u = tl.zeros([SUMS], dtype=tl.float32)
    for at in range(tl.load(starts + slot), end, SUMS):
        place = at + tl.arange(0, SUMS)
        w += tl.load(weights + place, mask=place < end, other=0.0)
        u += tl.load(updates + place, mask=place < end, other=0.0)
    weight, update = tl.sqrt(tl.sum(w)), tl.sqrt(tl.sum(u))
    kind = tl.load(kinds + slot)
    trusted = (tl.load(adapt + kind) > 0) & (weight > 0) & (update > 0)
    ratio = tl.where(trusted, weight / tl.where(update > 0, update, 1.0), 1.0)
    tl.store(sizes + slot, tl.load(rates + kind) * ratio)


@triton.jit
def _apply(  # pyright: ignore
    table, decays, corrections, sizes, eps,
    BLOCK: tl.constexpr, COPY: tl.constexpr, HALF_COPY: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    row = table + tl.program_id(0).to(tl.int64) * 8
    offsets = tl.arange(0, BLOCK)
    mask = None if FULL else offsets < tl.load(row + 4)
    other = None if FULL else 0.0
    param = pointer(row, 0, False)
    p = tl.load(param + offsets, mask=mask, other=other)
    m = tl.load(pointer(row, 1, False) + offsets, mask=mask, other=other)
    v = tl.load(pointer(row, 2, False) + offsets, mask=mask, other=other)
    size = tl.load(sizes + tl.load(row + 6))
    p = p - size * _direction(p, m, v, corrections, decays, tl.load(row + 5), eps)
    tl.store(param + offsets, p, mask=mask)
    if COPY:
        write_copy(row, offsets, p, mask, HALF_COPY)


class FusedLamb(Fused):
    """Clip by global norm and LAMB for a `Lamb`, whose state it keeps using, a step count for each group included.

    Args:
        *args: As `Fused`. A parameter that gets no gradient must not be among the slots: its trust ratio would make
            the decay alone a whole step.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        groups = sorted({number for number, _ in self.kinds})
        counts = {number: self.count_of([slot for slot in self.slots if slot.group == number]) for number in groups}
        self.counts = list(counts.values())
        self._counts = [counts[number] for number, _ in self.kinds]
        adapt = [float(self.optimizer.param_groups[number]["adapt"]) for number, _ in self.kinds]
        self._adapt = torch.tensor(adapt, device=self.device)
        self._kind = torch.tensor([self.kinds.index((slot.group, slot.l1)) for slot in self.slots], device=self.device)
        self._starts = starts(self.slots).to(self.device)
        self._corrections = torch.ones(len(self.kinds), 2, device=self.device)
        self._weights, self._updates = torch.zeros(2, int(self._starts[-1]), device=self.device).unbind()
        self._sizes = torch.zeros(len(self.slots), device=self.device)

    def step(self, addresses: Sequence[Tensor]) -> None:
        """One update from the gradients at `addresses`."""
        for count in self.counts:
            count.add_(1)
        # In double: in fp32, 1 - 0.999 ** t is off by 1e-4 of itself at the first steps.
        time = torch.stack(self._counts).double()
        self._corrections.copy_(torch.stack([1 - self.beta1**time, 1 - self.beta2**time], dim=1))
        self.measure(addresses)
        for table, grads in zip(self.tables, addresses, strict=True):
            _moments[(len(table.rows),)](
                table.rows, grads, self.decays, self.clipped, self.l1, self.square, self.limit, self._corrections,
                self._weights, self._updates, self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2, self.eps,
                BLOCK=BLOCK, num_warps=8, **table.reading,
            )  # fmt: skip
        _trust[(len(self.slots),)](
            self._starts, self._kind, self._adapt, self.rates, self._weights, self._updates, self._sizes,
            SUMS=SUMS, num_warps=4,
        )  # fmt: skip
        for table in self.tables:
            _apply[(len(table.rows),)](
                table.rows, self.decays, self._corrections, self._sizes, self.eps,
                BLOCK=BLOCK, num_warps=8, **table.writing,
            )  # fmt: skip
