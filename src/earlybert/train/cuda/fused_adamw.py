"""Clip and AdamW in two passes over memory, on a GPU: the arithmetic of `torch.optim.AdamW`, in fp32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .fused import BLOCK, Fused, clip, pointer, write_copy


@triton.jit
def _rest(x):  # pyright: ignore
    """1 - exp(x) for x <= 0, in fp32 within 1e-5 of itself also where x is near 0 and the difference would cancel."""
    near = -x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x * (1.0 / 120.0)))))
    return tl.where(x > -0.1, near, 1.0 - tl.exp(x))


@triton.jit
def _adamw(  # pyright: ignore
    table, grads, rates, decays, clipped, l1, square, limit, count, log1, rest1, log2, beta2, rest2, eps,
    BLOCK: tl.constexpr, HALF: tl.constexpr, COPY: tl.constexpr, HALF_COPY: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(0).to(tl.int64)
    row = table + piece * 8
    offsets = tl.arange(0, BLOCK)
    mask = None if FULL else offsets < tl.load(row + 4)
    other = None if FULL else 0.0
    kind = tl.load(row + 5)
    param, first, second = pointer(row, 0, False), pointer(row, 1, False), pointer(row, 2, False)
    g = tl.load(pointer(grads, piece, HALF) + offsets, mask=mask, other=other).to(tl.float32)
    p = tl.load(param + offsets, mask=mask, other=other)
    m = tl.load(first + offsets, mask=mask, other=other)
    v = tl.load(second + offsets, mask=mask, other=other)
    g = clip(g, p, kind, clipped, l1, square, limit)
    steps, rate = tl.load(count), tl.load(rates + kind)
    p = p * (1.0 - rate * tl.load(decays + kind))
    m = m + rest1 * (g - m)
    v = beta2 * v + rest2 * g * g
    size = rate / _rest(steps * log1)
    root = tl.sqrt(_rest(steps * log2))
    p = p - size * m / (tl.sqrt(v) / root + eps)
    tl.store(param + offsets, p, mask=mask)
    tl.store(first + offsets, m, mask=mask)
    tl.store(second + offsets, v, mask=mask)
    if COPY:
        write_copy(row, offsets, p, mask, HALF_COPY)


class FusedAdamW(Fused):
    """Clip by global norm and AdamW for a `torch.optim.AdamW`, whose state it keeps using.

    Args:
        *args: As `Fused`.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.count = self.count_of(self.slots)
        # Worked out here: 1 - beta in fp32 would be off by 1e-5 of itself, and log(beta) by 1e-4.
        log1, log2 = (math.log(beta) if beta else -math.inf for beta in (self.beta1, self.beta2))
        self._betas = (log1, 1 - self.beta1, log2, self.beta2, 1 - self.beta2)

    def step(self, addresses: Sequence[Tensor]) -> None:
        """One update from the gradients at `addresses`."""
        self.count.add_(1)
        self.measure(addresses)
        for table, grads in zip(self.tables, addresses, strict=True):
            _adamw[(len(table.rows),)](
                table.rows, grads, self.rates, self.decays, self.clipped, self.l1, self.square, self.limit,
                self.count, *self._betas, self.eps,
                BLOCK=BLOCK, num_warps=8, **(table.reading | table.writing),
            )  # fmt: skip
