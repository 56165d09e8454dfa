"""Linear layers whose input is also the residual, with gradients joined inside the matrix products.

The input of query, key and value, and that of the up projection, goes two ways: into the product and past it, to be
added behind. Their gradients would be added in a launch of their own; here the product adds into the one that is there.
The gradients of query, key and value are put side by side and summed for the bias in one pass.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .kernels import PROGRAMS, TILE

COLUMNS = 128


@triton.jit
def _join(  # pyright: ignore
    first, second, third, out, partial, width, rows, each, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(1) * each
    end = tl.minimum(begin + each, rows)
    inside = column < width
    one = tl.zeros([COLUMNS], dtype=tl.float32)
    two = tl.zeros([COLUMNS], dtype=tl.float32)
    three = tl.zeros([COLUMNS], dtype=tl.float32)
    for at in range(begin, end, ROWS):
        row = at + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & inside[None, :]
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        side = out + row.to(tl.int64)[:, None] * (3 * width) + column[None, :]
        a = tl.load(first + place, mask=mask, other=0.0)
        b = tl.load(second + place, mask=mask, other=0.0)
        c = tl.load(third + place, mask=mask, other=0.0)
        tl.store(side, a, mask=mask)
        tl.store(side + width, b, mask=mask)
        tl.store(side + 2 * width, c, mask=mask)
        one += tl.sum(a.to(tl.float32), axis=0)
        two += tl.sum(b.to(tl.float32), axis=0)
        three += tl.sum(c.to(tl.float32), axis=0)
    start = partial + tl.program_id(1).to(tl.int64) * 3 * width + column
    tl.store(start, one, mask=inside)
    tl.store(start + width, two, mask=inside)
    tl.store(start + 2 * width, three, mask=inside)


def parts(width: int) -> int:
    """Into how many parts `_join` cuts the rows for queries of this width."""
    return max(1, PROGRAMS * COLUMNS // width)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x, weight = ctx.saved_tensors
        assert grads[0] is not None
        return _products(x, weight, grads[0].reshape(-1, weight.shape[0]), grads[1], ctx.needs_input_grad[1])


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, into: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        ctx.into = into
        return *F.linear(x, weight, bias).chunk(3, dim=-1), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        x, weight = ctx.saved_tensors
        width = weight.shape[0] // 3
        rows = x.numel() // x.shape[-1]
        q, k, v = (x.new_zeros(rows, width) if g is None else g.reshape(rows, width) for g in grads[:3])
        dy = q.new_empty(rows, 3 * width)
        _join[(triton.cdiv(width, COLUMNS), len(ctx.into))](
            q.contiguous(), k.contiguous(), v.contiguous(), dy, ctx.into, width, rows,
            max(TILE, triton.cdiv(rows, len(ctx.into))), ROWS=TILE, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
        return *_products(x, weight, dy, grads[3], ctx.needs_input_grad[1]), None, None


def _products(x: Tensor, weight: Tensor, dy: Tensor, past: Tensor | None, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of a linear's input, added into that of the residual, and of its weight."""
    dweight = dy.t().mm(x.reshape(-1, x.shape[-1])) if wanted else None
    if past is None:
        return dy.mm(weight).view_as(x), dweight
    # In place: nobody else reads it any more. It comes from `add_norm`, and what that gave to the branch in between
    # has been used up, or this would not be running.
    past = past.contiguous()
    past.view(-1, x.shape[-1]).addmm_(dy, weight)
    return past, dweight


def linear(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`x @ weight.T`, and x to be added behind, whose gradient is joined with that of the product.

    Args:
        x: `[..., in]`.
        weight: `[out, in]`.
    """
    y, past = _Linear.apply(x, weight)  # pyright: ignore
    return y, past


def projection(x: Tensor, weight: Tensor, bias: Tensor, *, into: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key and value of x, and x to be added behind.

    Args:
        x: `[..., in]`.
        weight: `[3 * width, in]`.
        bias: `[3 * width]`.
        into: fp32 `[parts(width), 1, 3 * width]`: partial gradients of the bias are left there, and it gets none from
            autograd.
    """
    q, k, v, past = _Projection.apply(x, weight, bias, into)  # pyright: ignore
    return q, k, v, past
