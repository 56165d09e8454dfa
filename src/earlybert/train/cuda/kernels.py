"""The element-wise work between a layer's matrix products, fused: two Triton kernels forward, two backward.

`add_norm` is LayerNorm(residual + dropout(y + bias)); `bias_gelu` is GELU(y + bias), times a coefficient a neuron
(Eq. 3) in a search. Both read and write bf16, compute in fp32, and sum the gradients of biases, of LayerNorm and of
coefficients on the way instead of in a pass of their own. Each program leaves a partial sum; `sums` finishes
those of all layers in one launch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 264
"""Programs that share the rows in a backward pass, each leaving a partial sum: two a multiprocessor of an H100."""
TILE = 16
"""Rows a program should have at least where it sums over them in tiles."""


@triton.jit
def _keep(seed, index, threshold):  # pyright: ignore
    """Whether a place survives dropout: a 32-bit finaliser (MurmurHash3) of its index and the seed."""
    h = index.to(tl.uint32) * 0x9E3779B1 + seed.to(tl.uint32)
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    h = h ^ (h >> 16)
    return h >= threshold.to(tl.uint32)


@triton.jit
def _add_norm(  # pyright: ignore
    y, bias, residual, weight, shift, out, total, mean_out, rstd_out, seeds, which, threshold, scale, eps, width,
    BLOCK: tl.constexpr, BIAS: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = row * width + column
    x = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        x += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    if DROP:
        x = tl.where(_keep(tl.load(seeds + which), place, threshold), x * scale, 0.0)
    x += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    stored = x.to(total.dtype.element_ty)
    x = stored.to(tl.float32)  # what backward will read
    mean = tl.sum(x) / width
    centred = tl.where(inside, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred) / width + eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (centred * rstd * w + b).to(out.dtype.element_ty), mask=inside)
    tl.store(total + place, stored, mask=inside)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, rstd)


@triton.jit
def _add_norm_backward(  # pyright: ignore
    grad, total, mean_in, rstd_in, weight, dy, dresidual, partial, seeds, which, threshold, scale, width, rows,
    BLOCK: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK], dtype=tl.float32)
    dshift = tl.zeros([BLOCK], dtype=tl.float32)
    dbias = tl.zeros([BLOCK], dtype=tl.float32)
    for row in range(program, rows, tl.num_programs(0)):
        place = tl.cast(row, tl.int64) * width + column
        g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(total + place, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_in + row)
        normal = tl.where(inside, (x - tl.load(mean_in + row)) * rstd, 0.0)
        dweight += g * normal
        dshift += g
        g *= w
        d = (g - tl.sum(g) / width - normal * (tl.sum(g * normal) / width)) * rstd
        tl.store(dresidual + place, d.to(dresidual.dtype.element_ty), mask=inside)
        if DROP:
            d = tl.where(_keep(tl.load(seeds + which), place, threshold), d * scale, 0.0)
            tl.store(dy + place, d.to(dy.dtype.element_ty), mask=inside)
        dbias += d
    start = partial + program.to(tl.int64) * 3 * width + column
    tl.store(start, dweight, mask=inside)
    tl.store(start + width, dshift, mask=inside)
    tl.store(start + 2 * width, dbias, mask=inside)


@triton.jit
def _bias_gelu(  # pyright: ignore
    y, bias, coefficients, out, width, BLOCK: tl.constexpr, SCALE: tl.constexpr
):
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    x = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if SCALE:
        x *= tl.load(coefficients + column, mask=inside, other=0.0)
    tl.store(out + place, x.to(out.dtype.element_ty), mask=inside)


TILINGS = [
    triton.Config({"ROWS": rows, "COLUMNS": columns}, num_warps=warps)
    for rows, columns, warps in ((16, 128, 4), (16, 128, 8), (8, 256, 4), (32, 64, 4), (4, 256, 4))
]


@triton.autotune(TILINGS, key=[])  # once: a ticket has as many widths as layers, and tuning takes half a second each
@triton.jit
def _bias_gelu_backward(  # pyright: ignore
    grad, y, bias, coefficients, dy, partial, width, rows, each,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * each
    end = tl.minimum(begin + each, rows)
    inside = column < width
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    dbias = tl.zeros([COLUMNS], dtype=tl.float32)
    if SCALE:
        c = tl.load(coefficients + column, mask=inside, other=0.0)
        dc = tl.zeros([COLUMNS], dtype=tl.float32)
    for at in range(begin, end, ROWS):
        row = at + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.load(y + place, mask=mask, other=0.0).to(tl.float32) + b[None, :]
        g = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
        below = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        if SCALE:
            dc += tl.sum(g * x * below, axis=0)
            g *= c[None, :]
        d = g * (below + x * 0.3989422804014327 * tl.exp(-0.5 * x * x))
        tl.store(dy + place, d.to(dy.dtype.element_ty), mask=mask)
        dbias += tl.sum(d, axis=0)
    if SCALE:
        start = partial + tl.program_id(1).to(tl.int64) * 2 * width + column
        tl.store(start + width, dc, mask=inside)
    else:
        start = partial + tl.program_id(1).to(tl.int64) * width + column
    tl.store(start, dbias, mask=inside)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, bias: Tensor | None, residual: Tensor, weight: Tensor, shift: Tensor,
        p: float, eps: float, seeds: Tensor, which: int, into: Tensor | None,
    ) -> Tensor:  # fmt: skip
        width = y.shape[-1]
        y, residual = y.contiguous(), residual.contiguous()
        rows = y.numel() // width
        out, total = torch.empty_like(y), torch.empty_like(y)
        mean, rstd = y.new_empty((2, rows), dtype=torch.float32).unbind(0)
        ctx.drop = (int(p * 2**32), 1.0 / (1.0 - p), p > 0)
        ctx.block, ctx.which, ctx.bias, ctx.into = triton.next_power_of_2(width), which, bias is not None, into
        _add_norm[(rows,)](
            y, bias, residual, weight, shift, out, total, mean, rstd, seeds, which, *ctx.drop[:2], eps, width,
            BLOCK=ctx.block, BIAS=ctx.bias, DROP=ctx.drop[2], num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(total, mean, rstd, weight, seeds)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        total, mean, rstd, weight, seeds = ctx.saved_tensors
        grad = grads[0].contiguous()
        width = grad.shape[-1]
        rows = grad.numel() // width
        dresidual = torch.empty_like(grad)
        dy = torch.empty_like(grad) if ctx.drop[2] else dresidual
        partial = _room(ctx.into, grad, min(PROGRAMS, rows), 3)
        _add_norm_backward[(len(partial),)](
            grad, total, mean, rstd, weight, dy, dresidual, partial, seeds, ctx.which, *ctx.drop[:2], width, rows,
            BLOCK=ctx.block, DROP=ctx.drop[2], num_warps=4,
        )  # fmt: skip
        dweight = dshift = dbias = None
        if ctx.into is None:
            dweight, dshift, dbias = partial.sum(0).to(weight.dtype).unbind(0)
        return dy, dbias if ctx.bias else None, dresidual, dweight, dshift, None, None, None, None, None


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor, coefficients: Tensor | None, into: Tensor | None) -> Tensor:
        y = y.contiguous()
        out = torch.empty_like(y)
        width = y.shape[-1]
        block = min(1024, triton.next_power_of_2(width))
        _bias_gelu[(y.numel() // width, triton.cdiv(width, block))](
            y, bias, coefficients, out, width, BLOCK=block, SCALE=coefficients is not None, num_warps=4
        )
        ctx.into = into
        ctx.save_for_backward(y, bias, coefficients)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y, bias, coefficients = ctx.saved_tensors
        grad = grads[0].contiguous()
        width = grad.shape[-1]
        rows = grad.numel() // width
        dy = torch.empty_like(y)
        scale = coefficients is not None
        partial = _room(ctx.into, grad, min(triton.cdiv(rows, TILE), parts(width)), 1 + scale)
        each = max(TILE, triton.cdiv(rows, len(partial)))
        _bias_gelu_backward[lambda tile: (triton.cdiv(width, tile["COLUMNS"]), len(partial))](
            grad, y, bias, coefficients, dy, partial, width, rows, each, SCALE=scale
        )
        if ctx.into is not None:
            return dy, None, None, None
        sums = partial.sum(0)
        return dy, sums[0].to(bias.dtype), sums[1] if scale else None, None


def _room(into: Tensor | None, grad: Tensor, parts: int, kinds: int) -> Tensor:
    """Where partial sums go, fp32 `[parts, kinds, width]`."""
    return grad.new_empty((parts, kinds, grad.shape[-1]), dtype=torch.float32) if into is None else into


def parts(width: int) -> int:
    """Into how many parts the rows are cut where columns are shared out, too."""
    return max(1, PROGRAMS * 256 // width)


def add_norm(
    y: Tensor, bias: Tensor | None, residual: Tensor, weight: Tensor, shift: Tensor,
    *, p: float, eps: float, seeds: Tensor, which: int, into: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """LayerNorm(residual + dropout(y + bias)).

    Args:
        y: bf16 (or fp32, and then all are) `[..., width]`, a linear's output without its bias.
        bias: bf16 `[width]`, or None.
        residual: bf16, like y.
        weight: bf16 `[width]`, of the LayerNorm.
        shift: bf16 `[width]`, its bias.
        p: Probability of dropout; 0 drops nothing.
        eps: Of the LayerNorm.
        seeds: int64 `[calls]` on the device, drawn anew for every step.
        which: The seed of this call.
        into: fp32 `[PROGRAMS, 3, width]`: partial gradients of weight, shift and bias are left there, and
            those three get no gradient from autograd.

    Returns:
        bf16, like y.
    """
    out = _AddNorm.apply(y, bias, residual, weight, shift, p, eps, seeds, which, into)
    assert isinstance(out, Tensor)
    return out


def bias_gelu(y: Tensor, bias: Tensor, coefficients: Tensor | None = None, *, into: Tensor | None = None) -> Tensor:
    """GELU(y + bias), by the error function, times a coefficient for each column (Eq. 3).

    Args:
        y: bf16 (or fp32) `[..., width]`.
        bias: The same, `[width]`.
        coefficients: fp32 `[width]`, or None.
        into: fp32 `[parts(width), 1 or 2, width]`: partial gradients of the bias, and of the coefficients, are left
            there, and those two get no gradient from autograd.

    Returns:
        Like y.
    """
    out = _BiasGelu.apply(y, bias, coefficients, into)
    assert isinstance(out, Tensor)
    return out
