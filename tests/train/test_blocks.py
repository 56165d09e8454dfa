"""Attention in blocks against attention row by row in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earlybert.train import blocks

HEADS, SIZE, FREE = 3, 8, 5
LENGTHS = [3, 1, 0, 24, 7, 25, 8, 60, 24]  # unsorted, one block with padding alone, one without any


def by_rows(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], scale: float) -> Tensor:
    """What attention is: softmax(q k^T) v of each row and head, in the precision of its arguments; zeros at free places."""
    parts = []
    for q_, k_, v_ in zip(*(x.split([*lengths, len(x) - sum(lengths)]) for x in (q, k, v)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q_, k_) * scale
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v_))
    parts[-1] = torch.zeros_like(parts[-1])
    return torch.cat(parts)


def inputs(lengths: list[int], dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    tokens = sum(lengths) + FREE
    return [torch.randn(tokens, HEADS, SIZE).to(dtype).requires_grad_() for _ in range(4)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("lengths", [LENGTHS, [9], [8, 8], [300, 2, 130]])
def test_values_and_gradients(lengths: list[int], dtype: torch.dtype, tolerance: float) -> None:
    *qkv, weights = inputs(lengths, dtype)
    laid = blocks.lay_out(lengths, HEADS)
    mine = blocks.attend(*qkv, laid, 0.5)  # type: ignore[call-arg]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    wanted = by_rows(*exact, lengths, 0.5)
    grads = torch.autograd.grad((mine * weights).sum(), qkv)
    exact_grads = torch.autograd.grad((wanted * weights.double()).sum(), exact)
    assert mine.dtype == dtype
    for found, expected in zip((mine, *grads), (wanted, *exact_grads), strict=True):
        torch.testing.assert_close(
            found.double(), expected, rtol=0, atol=tolerance * max(1.0, float(expected.detach().abs().max()))
        )
    assert not mine[-FREE:].any()
    assert all(not grad[-FREE:].any() for grad in grads)


def test_what_stands_elsewhere_changes_nothing_to_the_bit() -> None:
    q, k, v, _ = inputs(LENGTHS, torch.float32)
    laid = blocks.lay_out(LENGTHS, HEADS)
    before = blocks.attend(q, k, v, laid, 0.5).detach()
    with torch.no_grad():
        for x in (q, k, v):
            x[-FREE:] = torch.nan  # free places
            x[: LENGTHS[0]] += 3.0  # another row
    after = blocks.attend(q, k, v, laid, 0.5).detach()
    assert torch.equal(before[LENGTHS[0] :], after[LENGTHS[0] :])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=20), st.integers(1, 4))
def test_every_token_has_one_place_and_padding_the_rest(lengths: list[int], heads: int) -> None:
    laid = blocks.lay_out(lengths, heads)
    assert torch.equal(laid.source[laid.place], torch.arange(sum(lengths) * heads))
    places = torch.cat([laid.place, laid.padding]).sort().values
    assert torch.equal(places, torch.arange(len(laid.source)))
    assert sum(block.end - block.begin for block in laid.blocks) == len(laid.source)
    assert len(laid.blocks) == len({blocks.padded(length) for length in lengths if length})
    for block in laid.blocks:
        absent = laid.padding[(laid.padding >= block.begin) & (laid.padding < block.end)] - block.begin
        masked = torch.zeros(block.end - block.begin, dtype=torch.bool)
        if block.mask is not None:
            masked = block.mask.flatten().isinf()
        assert masked.nonzero().flatten().tolist() == absent.tolist()


@pytest.mark.parametrize(
    ("lengths", "dtype", "worth"),
    [
        ([48] * 8, torch.float32, True),
        ([49] * 8, torch.float32, False),
        (range(100, 104), torch.float32, False),
        (range(100, 105), torch.float32, True),  # five lengths would be five calls
        ([100, 101] * 4, torch.float32, True),  # a call for each, since they alternate
        (range(124, 130), torch.float32, False),
        ([512], torch.bfloat16, True),
    ],
)
def test_where_blocks_are_worth_it(lengths: Sequence[int], dtype: torch.dtype, worth: bool) -> None:
    assert blocks.worth(lengths, max(lengths), dtype) == worth


def test_little_is_padded() -> None:
    for length in range(1, 513):
        assert length <= blocks.padded(length) < length + max(8, length / 2)
