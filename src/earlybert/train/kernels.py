"""The element-wise work between a layer's matrix products, fused: two Triton kernels forward, two backward.

`add_norm` is LayerNorm(residual + dropout(y + bias)); `bias_gelu` is GELU(y + bias). Both read and write bf16,
compute in fp32, and sum the gradients of biases and of LayerNorm on the way instead of in a pass of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 264
"""Programs that share the rows in a backward pass, each leaving a partial sum: two a multiprocessor of an H100."""


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
    stored = x.to(tl.bfloat16)
    x = stored.to(tl.float32)  # what backward will read
    mean = tl.sum(x) / width
    centred = tl.where(inside, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred) / width + eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (centred * rstd * w + b).to(tl.bfloat16), mask=inside)
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
        tl.store(dresidual + place, d.to(tl.bfloat16), mask=inside)
        if DROP:
            d = tl.where(_keep(tl.load(seeds + which), place, threshold), d * scale, 0.0)
            tl.store(dy + place, d.to(tl.bfloat16), mask=inside)
        dbias += d
    start = partial + program.to(tl.int64) * 3 * width + column
    tl.store(start, dweight, mask=inside)
    tl.store(start + width, dshift, mask=inside)
    tl.store(start + 2 * width, dbias, mask=inside)


@triton.jit
def _erf_gelu(x):  # pyright: ignore
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _bias_gelu(y, bias, out, width, size, BLOCK: tl.constexpr):  # pyright: ignore
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    x = tl.load(y + place, mask=inside).to(tl.float32) + tl.load(bias + place % width, mask=inside).to(tl.float32)
    tl.store(out + place, _erf_gelu(x).to(tl.bfloat16), mask=inside)


TILINGS = [
    triton.Config({"ROWS": rows, "COLUMNS": columns}, num_warps=warps)
    for rows, columns, warps in ((16, 128, 4), (16, 128, 8), (8, 256, 4), (32, 64, 4), (4, 256, 4))
]


@triton.autotune(TILINGS, key=[])  # once: a ticket has as many widths as layers, and tuning takes half a second each
@triton.jit
def _bias_gelu_backward(  # pyright: ignore
    grad, y, bias, dy, partial, width, rows, each, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * each
    end = tl.minimum(begin + each, rows)
    inside = column < width
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    for at in range(begin, end, ROWS):
        row = at + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.load(y + place, mask=mask, other=0.0).to(tl.float32) + b[None, :]
        g = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
        slope = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
        d = g * slope
        tl.store(dy + place, d.to(tl.bfloat16), mask=mask)
        total += tl.sum(d, axis=0)
    tl.store(partial + tl.program_id(1).to(tl.int64) * width + column, total, mask=inside)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, bias: Tensor | None, residual: Tensor, weight: Tensor, shift: Tensor,
        p: float, eps: float, seeds: Tensor, which: int,
    ) -> Tensor:  # fmt: skip
        width = y.shape[-1]
        y, residual = y.contiguous(), residual.contiguous()
        rows = y.numel() // width
        out, total = torch.empty_like(y), torch.empty_like(y)
        mean, rstd = y.new_empty((2, rows), dtype=torch.float32).unbind(0)
        ctx.drop = (int(p * 2**32), 1.0 / (1.0 - p), p > 0)
        ctx.block, ctx.which, ctx.bias = triton.next_power_of_2(width), which, bias is not None
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
        programs = min(PROGRAMS, rows)
        partial = grad.new_empty((programs, 3, width), dtype=torch.float32)
        _add_norm_backward[(programs,)](
            grad, total, mean, rstd, weight, dy, dresidual, partial, seeds, ctx.which, *ctx.drop[:2], width, rows,
            BLOCK=ctx.block, DROP=ctx.drop[2], num_warps=4,
        )  # fmt: skip
        dweight, dshift, dbias = partial.sum(0).to(weight.dtype).unbind(0)
        return dy, dbias if ctx.bias else None, dresidual, dweight, dshift, None, None, None, None


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor) -> Tensor:
        y = y.contiguous()
        out = torch.empty_like(y)
        block = 2048
        _bias_gelu[(triton.cdiv(y.numel(), block),)](y, bias, out, y.shape[-1], y.numel(), BLOCK=block, num_warps=4)
        ctx.save_for_backward(y, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        y, bias = ctx.saved_tensors
        grad = grads[0].contiguous()
        width = grad.shape[-1]
        rows = grad.numel() // width
        parts = max(1, min(triton.cdiv(rows, 16), PROGRAMS * 256 // width))
        each = triton.cdiv(rows, parts)
        dy = torch.empty_like(y)
        partial = grad.new_empty((parts, width), dtype=torch.float32)
        _bias_gelu_backward[lambda tile: (triton.cdiv(width, tile["COLUMNS"]), parts)](
            grad, y, bias, dy, partial, width, rows, each
        )
        return dy, partial.sum(0).to(bias.dtype)


def add_norm(
    y: Tensor, bias: Tensor | None, residual: Tensor, weight: Tensor, shift: Tensor,
    *, p: float, eps: float, seeds: Tensor, which: int,
) -> Tensor:  # fmt: skip
    """LayerNorm(residual + dropout(y + bias)).

    Args:
        y: bf16 `[..., width]`, a linear's output without its bias.
        bias: bf16 `[width]`, or None.
        residual: bf16, like y.
        weight: bf16 `[width]`, of the LayerNorm.
        shift: bf16 `[width]`, its bias.
        p: Probability of dropout; 0 drops nothing.
        eps: Of the LayerNorm.
        seeds: int64 `[calls]` on the device, drawn anew for every step.
        which: The seed of this call.

    Returns:
        bf16, like y.
    """
    out = _AddNorm.apply(y, bias, residual, weight, shift, p, eps, seeds, which)
    assert isinstance(out, Tensor)
    return out


def bias_gelu(y: Tensor, bias: Tensor) -> Tensor:
    """GELU(y + bias), by the error function. y: bf16 `[..., width]`, bias: bf16 `[width]`; bf16, like y."""
    out = _BiasGelu.apply(y, bias)
    assert isinstance(out, Tensor)
    return out
