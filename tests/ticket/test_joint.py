"""One ranking of heads and neurons: against brute force, its floors, its budget."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from earlybert import Scores, Ticket, apply
from earlybert.anatomy import Refused, of
from earlybert.anatomy.linear import linear_at
from earlybert.baselines import random_ticket
from earlybert.ticket.joint import draw_jointly


def scores_of(heads: list[list[float]], neurons: list[list[float]], seed: int = 0) -> Scores:
    return Scores(tuple(map(torch.tensor, heads)), tuple(map(torch.tensor, neurons)), "bert", seed=seed)


def worth(scores: Scores, ticket) -> float:  # type: ignore[no-untyped-def]
    return sum(
        float(part[list(kept)].sum())
        for parts, kepts in ((scores.heads, ticket.heads), (scores.neurons, ticket.neurons))
        for part, kept in zip(parts, kepts, strict=True)
    )


def spent(ticket, head_size: int) -> int:  # type: ignore[no-untyped-def]
    return ticket.heads_kept * 2 * head_size + ticket.neurons_kept


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.3, 0.5, 0.6]))
def test_within_the_budget_no_choice_of_the_same_cost_is_worth_more(seed: int, remove: float) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = Scores(
        tuple(torch.rand(2, 3, generator=random)), tuple(torch.rand(2, 4, generator=random)), "bert", seed=seed
    )
    ticket = draw_jointly(scores, remove=remove, head_price=2, align=2)  # a head costs as much as a block of two
    total = 2 * 3 * 2 + 2 * 4
    assert abs(spent(ticket, 1) - (1 - remove) * total) <= 1 + 1e-9
    best = 0.0
    for heads in product(range(1, 4), repeat=2):
        for blocks in product(range(1, 3), repeat=2):
            if 2 * sum(heads) + 2 * sum(blocks) != spent(ticket, 1):
                continue
            total_worth = sum(float(scores.heads[layer].topk(n).values.sum()) for layer, n in enumerate(heads))
            total_worth += sum(float(scores.neurons[layer].topk(2 * n).values.sum()) for layer, n in enumerate(blocks))
            best = max(best, total_worth)
    assert worth(scores, ticket) == pytest.approx(best, rel=1e-6)


def test_the_dear_units_have_to_be_worth_it() -> None:
    scores = scores_of([[1.0, 0.9, 0.9, 0.9]], [[0.2] * 64])
    # a head costs 16 neurons: 0.9 for 16 against 3.2 for 16
    ticket = draw_jointly(scores, remove=0.3, head_price=16, align=8)
    assert len(ticket.neurons[0]) == 64
    assert len(ticket.heads[0]) == 2
    richer = scores_of([[9.0, 8.0, 8.0, 8.0]], [[0.2] * 64])
    assert len(draw_jointly(richer, remove=0.3, head_price=16, align=8).heads[0]) == 4


def test_what_is_worth_less_does_not_go_in_where_a_dear_unit_no_longer_fits() -> None:
    scores = scores_of([[9.0, 8.0, 7.0]], [[1.0] * 8])
    ticket = draw_jointly(scores, remove=0.5, head_price=4, align=1)  # 10 of 20: two heads and a neuron are 9
    assert (ticket.heads_kept, ticket.neurons_kept) == (2, 1)


def test_equal_units_are_spread_over_layers_by_the_seed_heads_otherwise_than_neurons() -> None:
    ones = [[1.0] * 64] * 6
    spread = [
        [len(kept) for kept in layers]
        for seed in (0, 1)
        for ticket in [draw_jointly(scores_of(ones, ones, seed), remove=0.5, head_price=1, align=1)]
        for layers in (ticket.heads, ticket.neurons)
    ]
    for one, other in combinations(spread, 2):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 2  # not just another unit that stays first


def test_nothing_removed_keeps_all_and_every_layer_keeps_something() -> None:
    scores = scores_of([[1.0, 2.0], [0.0, 0.0]], [[1.0] * 8, [0.0] * 8])
    assert draw_jointly(scores, remove=0, head_price=4, align=4).neurons_kept == 16
    ticket = draw_jointly(scores, remove=0.4, head_price=4, align=4)
    assert all(ticket.heads)
    assert all(len(kept) >= 4 for kept in ticket.neurons)
    assert ticket.to_dict() == draw_jointly(scores, remove=0.4, head_price=4, align=4).to_dict()


def test_refused() -> None:
    scores = scores_of([[1.0, 2.0]], [[1.0] * 8])
    for remove, align, said in (
        (1.0, 4, "must be in"),
        (0.9, 4, "less than a head and 4 neurons"),
        (0.1, 9, "align must be"),
    ):
        with pytest.raises(Refused, match=said):
            draw_jointly(scores, remove=remove, head_price=4, align=align)
    least = draw_jointly(scores, remove=0.5, head_price=4, align=4)  # 8 of 16, which is a head and 4 neurons
    assert (least.heads_kept, least.neurons_kept) == (1, 4)
    with pytest.raises(Refused, match="less than a head and 4 neurons"):
        draw_jointly(scores, remove=0.51, head_price=4, align=4)


def test_from_scores_of_a_cut_model_the_share_counts_from_the_whole_one() -> None:
    first = Ticket(((0, 2), (0, 1, 2)), ((0, 1, 2, 3), (1, 2, 3, 5, 6, 7)), "bert", 3, 8)
    random = torch.Generator().manual_seed(0)
    heads, neurons = (tuple(torch.rand(2, size, generator=random)) for size in (3, 8))
    scores = Scores(heads, neurons, "bert", within=first)
    ticket = draw_jointly(scores, remove=0.5, head_price=2, align=2)
    assert abs(spent(ticket, 1) - 0.5 * (2 * 3 * 2 + 2 * 8)) <= 1
    assert all(
        set(a) <= set(b) for a, b in zip(ticket.heads + ticket.neurons, first.heads + first.neurons, strict=True)
    )
    with pytest.raises(Refused, match="would keep more than the cut model has"):
        draw_jointly(scores, remove=0.1, head_price=2, align=2)


LAID_OUT: dict[str, dict[str, Any]] = {
    "bert": {},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "qwen2": {"num_key_value_heads": 2},
    "deberta-v2": {"relative_attention": True, "share_att_key": False, "pos_att_type": ["c2p", "p2c"]},
}


@pytest.mark.parametrize("dear", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("kind", list(LAID_OUT))
def test_the_budget_is_met_however_a_family_lays_its_linears_out(kind: str, dear: float) -> None:
    """Gated neurons have three vectors, grouped queries share keys and values, positions may be projected, too."""
    small = {"vocab_size": 120, "hidden_size": 128, "num_attention_heads": 8, "intermediate_size": 256}
    more = {"num_hidden_layers": 4, "max_position_embeddings": 64, "pad_token_id": 0}
    model = AutoModel.from_config(AutoConfig.for_model(kind, **small, **more, **LAID_OUT[kind]))
    anatomy = of(model)
    scores = random_ticket.scores(anatomy, 0)
    scores = replace(scores, heads=tuple(row * anatomy.head_price * dear for row in scores.heads))
    ticket = draw_jointly(scores, remove=0.31, head_price=anatomy.head_price, align=8)

    def size(of_model: Any) -> int:
        return sum(linear_at(of_model, name).weight.numel() for layer in of(of_model).layers for name in layer.linears)

    one = 1 / (anatomy.num_heads * len(anatomy.layers))
    assert 1 - size(apply(model, ticket, check=False)) / size(model) == pytest.approx(0.31, abs=one / 2)


def test_neurons_that_fill_no_block_count_among_what_goes() -> None:
    scores = scores_of([[1.0] * 4] * 2, [[0.1] * 20] * 2)
    kept = draw_jointly(scores, remove=0.35, head_price=10, align=16)  # 32 of 40 neurons can stay at most
    assert kept.neurons_kept == 32
    assert kept.heads_kept * 10 + 32 == pytest.approx(0.65 * (8 * 10 + 40), abs=5)  # to half a head
