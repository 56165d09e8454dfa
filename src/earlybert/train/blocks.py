"""Attention on a CPU: rows of about one length as blocks of a few batched matrix products.

On rows of a few dozen tokens SDPA on rows of equal length spends its time on being called, once for every length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

SHORT = 24
"""Blocks of rows up to this length are computed in fp32, whatever comes in: small products are faster so."""
FP32_SHORT, FP32_LONGEST = 48, 128
"""In fp32, batches of longer rows than the first are SDPA's where few calls do; than the second, always."""
FP32_FEW = 4
"""Runs of rows of one length in a batch that SDPA may be called for one by one."""


@dataclass(frozen=True)
class Block:
    """Rows of about one length among all places, which are ordered by row, head and place in the row.

    Attributes:
        begin: Of its places.
        end: Of its places.
        length: Every row is padded to this.
        mask: 0 for a key that is there and -inf for padding, fp32 `[rows * heads, 1, length]`; None without padding.
    """

    begin: int
    end: int
    length: int
    mask: Tensor | None


@dataclass(frozen=True)
class Blocks:
    """Where each token's heads stand among the places of all blocks, and back.

    Attributes:
        source: What stands at each place, int64 `[places]`, counted in `[tokens * heads]`; padding repeats its row's
            first token.
        place: Of each token's head, int64 `[tokens of rows * heads]`.
        padding: Places of padding, int64.
        blocks: Short rows first.
    """

    source: Tensor
    place: Tensor
    padding: Tensor
    blocks: tuple[Block, ...]


def padded(length: int) -> int:
    """What the rows of a length are padded to: few blocks, little padding, shapes that oneDNN likes."""
    step = 8 if length <= SHORT else 16 if length <= 128 else 32 if length <= 256 else 64
    return -(-length // step) * step


def worth(lengths: Sequence[int], longest: int, dtype: torch.dtype) -> bool:
    """Whether blocks are faster than SDPA on rows of equal length (fp32: measured with AVX2, bf16 with AVX-512).

    Args:
        lengths: Tokens of each row.
        longest: No row is longer.
        dtype: That attention comes in.
    """
    if dtype == torch.bfloat16 or longest <= FP32_SHORT:
        return True
    return longest <= FP32_LONGEST and sum(1 for _ in groupby(lengths)) > FP32_FEW


def lay_out(lengths: Sequence[int], heads: int) -> Blocks:
    """Lay the rows of a packed batch out in blocks.

    Args:
        lengths: Tokens of each row.
        heads: Of the layer.
    """
    starts = [0, *accumulate(lengths)]
    sources: list[Tensor] = []
    absent: list[Tensor] = []
    place = torch.empty(starts[-1] * heads, dtype=torch.long)
    blocks: list[Block] = []
    begin = 0
    head = torch.arange(heads)[:, None]
    rows = sorted((row for row, size in enumerate(lengths) if size), key=lambda row: padded(lengths[row]))
    for length, run in groupby(rows, lambda row: padded(lengths[row])):
        members = list(run)
        inside = torch.arange(length)
        present = inside < torch.tensor([lengths[row] for row in members])[:, None]  # [rows, length]
        token = torch.where(present, inside, 0) + torch.tensor([starts[row] for row in members])[:, None]
        source = (token[:, None] * heads + head).flatten()  # [rows * heads * length]
        there = present[:, None].expand(-1, heads, -1)
        places = torch.arange(begin, begin + len(source))
        kept = there.flatten()
        place[source[kept]] = places[kept]
        mask = None
        if not bool(kept.all()):
            absent.append(places[~kept])
            mask = torch.zeros(there.shape).masked_fill_(~there, -torch.inf).view(-1, 1, length)
        sources.append(source)
        blocks.append(Block(begin, begin + len(source), length, mask))
        begin += len(source)
    none = torch.empty(0, dtype=torch.long)
    return Blocks(torch.cat([none, *sources]), place, torch.cat([none, *absent]), tuple(blocks))


def attend(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, scale: float) -> Tensor:
    """Attention within each row.

    Args:
        q: `[tokens, heads, head size]`, bf16 or fp32.
        k: The same.
        v: The same.
        blocks: Of this batch and this number of heads.
        scale: Of the scores.

    Returns:
        As `q`; zeros at free places behind the rows.
    """
    with torch.autocast("cpu", enabled=False):
        out = _Attention.apply(q, k, v, blocks, scale)
    assert isinstance(out, Tensor)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, scale: float) -> Tensor:
        queries, keys, values = (_spread(x, blocks) for x in (q, k, v))
        out = torch.empty_like(queries)
        shares: list[Tensor] = []
        for block in blocks.blocks:
            q_, k_, v_ = (_of(block, x) for x in (queries, keys, values))
            if block.mask is None:
                scores = torch.bmm(q_, k_.mT).mul_(scale)
            else:
                scores = torch.baddbmm(block.mask.to(q_.dtype), q_, k_.mT, alpha=scale)
            share = scores.softmax(-1)
            _put(block, out, torch.bmm(share, v_))
            shares.append(share)
        ctx.save_for_backward(queries, keys, values, *shares)
        ctx.blocks, ctx.scale = blocks, scale
        return _gathered(out, blocks, q)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        blocks: Blocks = ctx.blocks
        queries, keys, values, *shares = ctx.saved_tensors
        grad = _spread(grads[0], blocks)
        grad.index_fill_(0, blocks.padding, 0.0)
        dq, dk, dv = (torch.empty_like(queries) for _ in range(3))
        for block, share in zip(blocks.blocks, shares, strict=True):
            q_, k_, v_, g_ = (_of(block, x) for x in (queries, keys, values, grad))
            _put(block, dv, torch.bmm(share.mT, g_))
            change = torch.bmm(g_, v_.mT)
            change = torch.ops.aten._softmax_backward_data(change, share, -1, share.dtype).mul_(ctx.scale)
            _put(block, dq, torch.bmm(change, k_))
            _put(block, dk, torch.bmm(change.mT, q_))
        return *(_gathered(x, blocks, grads[0]) for x in (dq, dk, dv)), None, None


def _spread(x: Tensor, blocks: Blocks) -> Tensor:
    """`[tokens, heads, head size]` as `[places, head size]`."""
    return x.reshape(-1, x.shape[-1]).index_select(0, blocks.source)


def _gathered(x: Tensor, blocks: Blocks, like: Tensor) -> Tensor:
    """Back from `[places, head size]`."""
    back = torch.empty(like.shape, dtype=x.dtype)
    flat, taken = back.view(-1, x.shape[-1]), len(blocks.place)
    torch.index_select(x, 0, blocks.place, out=flat[:taken])
    flat[taken:] = 0.0
    return back


def _of(block: Block, x: Tensor) -> Tensor:
    """A block's part, `[rows * heads, length, head size]`, in the precision it is computed in."""
    part = x[block.begin : block.end].view(-1, block.length, x.shape[-1])
    return part.float() if block.length <= SHORT else part


def _put(block: Block, into: Tensor, part: Tensor) -> None:
    into[block.begin : block.end] = part.view(-1, into.shape[-1])
