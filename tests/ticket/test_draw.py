"""Drawing against brute force, with ties; the budget, the floor, the bytes."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlybert import Refused, Scores, Ticket, draw
from earlybert.ticket.draw import keep_mask, tie_hash

small_matrices = st.integers(1, 4).flatmap(
    lambda layers: st.integers(1, 9).flatmap(
        lambda units: st.lists(
            st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=units, max_size=units),
            min_size=layers,
            max_size=layers,
        ).map(lambda rows: np.array(rows, dtype=np.float64))
    )
)


def scores_of(matrix: np.ndarray, seed: int = 0) -> Scores:
    vectors = tuple(torch.from_numpy(matrix.astype(np.float32)))
    return Scores(vectors, vectors, "bert", seed=seed)


def brute_force(importance: np.ndarray, removed: int, scope: str, seed: int) -> np.ndarray:
    """One unit at a time: protect the best of each layer, then drop the worst, ties by hash."""
    layers, units = importance.shape
    tie = tie_hash(seed, layers, units)
    mask = np.ones((layers, units), dtype=bool)
    worst_first = sorted(product(range(layers), range(units)), key=lambda at: (importance[at], -int(tie[at])))
    best = {
        layer: min(range(units), key=lambda u: (-importance[layer, u], int(tie[layer, u]))) for layer in range(layers)
    }
    gone = dict.fromkeys(range(layers), 0)
    for layer, unit in worst_first:
        full = gone[layer] == removed if scope == "layer" else sum(gone.values()) == removed
        if not full and best[layer] != unit:
            mask[layer, unit] = False
            gone[layer] += 1
    return mask


@settings(deadline=None, max_examples=300)
@given(small_matrices, st.integers(0, 35), st.sampled_from(["layer", "global"]), st.integers(0, 3))
def test_against_brute_force_with_ties(matrix: np.ndarray, removed: int, scope: str, seed: int) -> None:
    layers, units = matrix.shape
    most = units - 1 if scope == "layer" else layers * (units - 1)
    removed = min(removed, most)
    mask = keep_mask(matrix, removed, scope=scope, seed=seed)  # type: ignore[arg-type]
    assert np.array_equal(mask, brute_force(matrix, removed, scope, seed))


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 4), st.integers(2, 5), st.integers(1, 4), st.floats(0, 0.99), st.sampled_from(["layer", "global"]),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_aligned_budget_floor_and_best_total(
    layers: int, blocks: int, align: int, ratio: float, scope: str, random: object
) -> None:
    units = blocks * align
    draw_number = getattr(random, "random")  # noqa: B009
    matrix = np.array([[draw_number() for _ in range(units)] for _ in range(layers)])
    kept = layers * units - _round_half_up(ratio, layers * units)
    if scope == "layer":
        kept = layers * (units - _round_half_up(ratio, units))
    try:
        mask = keep_mask(matrix, ratio, scope=scope, align=align)  # type: ignore[arg-type]
    except Refused:
        assert layers * align - kept >= align  # refused only when the floor alone is over the budget
        return
    counts = mask.sum(axis=1)
    if mask.all() and kept == layers * units:
        return
    assert (counts % align == 0).all()
    assert counts.min() >= align
    assert abs(int(counts.sum()) - kept) < align or (align > 1 and abs(int(counts.sum()) - kept) <= align / 2)
    for layer in range(layers):  # in each layer the best stay
        inside, outside = matrix[layer][mask[layer]], matrix[layer][~mask[layer]]
        assert outside.size == 0 or inside.min() >= outside.max()
    if scope == "global":  # no other allocation of as many blocks keeps more
        order = -np.sort(-matrix, axis=1)
        totals = [
            sum(order[layer, : count * align].sum() for layer, count in enumerate(counts_))
            for counts_ in product(range(1, blocks + 1), repeat=layers)
            if sum(counts_) * align == counts.sum()
        ]
        assert matrix[mask].sum() == pytest.approx(max(totals))
    else:
        assert counts.max() - counts.min() <= align


def _round_half_up(ratio: float, whole: int) -> int:
    return int(Fraction(repr(ratio)) * whole + Fraction(1, 2))


def test_counts_are_round_half_up_of_the_number_as_written() -> None:
    matrix = np.random.default_rng(0).random((1, 1000))
    for ratio, removed in ((0.285, 285), (0.0005, 1), (0.0004, 0), (1 / 3, 333), (0.5, 500)):
        assert (~keep_mask(matrix, ratio, scope="layer")).sum() == removed
    assert (~keep_mask(matrix[:, :10], 0.35, scope="layer")).sum() == 4  # 3 by the nearest binary fraction, below 0.35


def test_where_nothing_goes_nothing_is_aligned() -> None:
    assert keep_mask(np.ones((2, 70)), 0, scope="global", align=64).all()


def test_ties_spread_over_layers_and_indices_and_follow_the_seed() -> None:
    """After one step nearly all coefficients of a real model are equal; index order would keep whole layers."""
    matrix = np.ones((6, 1536))
    mask = keep_mask(matrix, 0.4, scope="global", seed=0)
    assert mask.sum() == 9216 - 3686
    assert mask.sum(axis=1).min() > 850
    assert mask.sum(axis=1).max() < 1000
    halves = mask[:, :768].sum() / mask.sum()
    assert 0.48 < halves < 0.52
    assert not np.array_equal(mask, keep_mask(matrix, 0.4, scope="global", seed=1))


def test_equal_blocks_go_by_the_hash_of_their_best_unit_and_each_layer_keeps_its_first() -> None:
    first = np.sort(tie_hash(3, 4, 6), axis=1)[:, ::2]  # a layer's pairs are of neighbours by hash
    third_best = np.sort(first[:, 1:].ravel())[2]
    mask = keep_mask(np.ones((4, 6)), 24 - 14, scope="global", align=2, seed=3)  # seven pairs stay
    assert mask.sum(axis=1).tolist() == (2 + 2 * (first[:, 1:] <= third_best).sum(axis=1)).tolist()


def test_equal_heads_and_equal_neurons_follow_the_seed_of_the_scores() -> None:
    first, other = (draw(scores_of(np.ones((4, 16)), seed), heads=8, neurons=32, align=1) for seed in (0, 1))
    assert first.heads != other.heads
    assert first.neurons != other.neurons


@pytest.mark.parametrize(("removed", "kept"), [(5, 12), (6, 12), (7, 8)])
def test_half_a_block_over_is_a_block_more(removed: int, kept: int) -> None:
    assert keep_mask(np.ones((2, 8)), removed, scope="global", align=4).sum() == kept


def test_paper_configuration_on_bert_base_sizes() -> None:
    torch.manual_seed(0)
    scores = Scores(tuple(torch.rand(12, 12)), tuple(torch.rand(12, 3072)), "bert")
    raw = draw(scores, heads=4, neurons=0.4, align=1)
    assert {len(kept) for kept in raw.heads} == {8}
    assert raw.neurons_kept == 12 * 3072 - 14746  # 14745.6, rounded half up
    aligned = draw(scores, heads=4, neurons=0.4)
    assert all(len(kept) % 64 == 0 for kept in aligned.neurons)
    assert abs(aligned.neurons_kept - raw.neurons_kept) < 64
    by_layer = draw(scores, heads=4, neurons=0.4, align=1, neurons_scope="layer", heads_scope="global")
    assert {len(kept) for kept in by_layer.neurons} == {3072 - 1229}
    assert by_layer.heads_kept == 144 - 4


def test_sign_does_not_matter_and_sixteen_heads_take_counts() -> None:
    torch.manual_seed(0)
    head, neuron = torch.rand(2, 16), torch.rand(2, 128)
    plain = draw(Scores(tuple(head), tuple(neuron), "bert"), heads=6, neurons=0)
    flipped = draw(Scores(tuple(-head), tuple(neuron), "bert"), heads=6, neurons=0)
    assert plain.heads == flipped.heads
    assert {len(kept) for kept in plain.heads} == {10}
    assert {len(kept) for kept in draw(Scores(tuple(head), tuple(neuron), "bert"), heads=1 / 3, neurons=0).heads} == {
        11
    }


def test_numpy_numbers_are_numbers() -> None:
    scores = scores_of(np.random.default_rng(0).random((2, 16)))
    plain = draw(scores, heads=0.25, neurons=3, align=1)
    assert draw(scores, heads=np.float64(0.25), neurons=np.int64(3), align=1) == plain
    assert plain.to_dict() == draw(scores, heads=np.float64(0.25), neurons=np.int64(3), align=1).to_dict()


def test_margin_says_how_sure_the_cut_is() -> None:
    head = torch.tensor([[1.0, 0.5, 0.9, 0.8], [1.0, 0.2, 0.7, 0.6]])
    tied = torch.ones(2, 64)
    ticket = draw(Scores(tuple(head), tuple(tied), "bert"), heads=2, neurons=0.5, align=1)
    margin = ticket.drawn["margin"]
    assert margin["heads"] == pytest.approx(0.1, abs=1e-6)  # 0.9 over 0.8, and 0.7 over 0.6
    assert margin["neurons"] == 0.0  # a ticket of ties says so
    assert draw(Scores(tuple(head), tuple(tied), "bert"), heads=0, neurons=0).drawn["margin"] == {
        "heads": None,
        "neurons": None,
    }


def test_the_margin_of_each_kind_is_taken_within_its_own_scope() -> None:
    scores = scores_of(np.array([[1.0, 0.625], [0.5, 0.375]]))  # 1.0 and 0.5 stay in either scope
    for heads_scope, neurons_scope in (("layer", "global"), ("global", "layer")):
        ticket = draw(scores, heads=0.5, neurons=0.5, heads_scope=heads_scope, neurons_scope=neurons_scope, align=1)  # type: ignore[call-overload]
        margin = ticket.drawn["margin"]
        by_scope = {heads_scope: margin["heads"], neurons_scope: margin["neurons"]}
        assert by_scope == {"layer": 0.125, "global": -0.125}  # 0.5 stays as its layer's best, and 0.625 does not


def test_a_ticket_names_the_scores_it_came_from() -> None:
    heads, neurons = torch.rand(2, 4), torch.rand(2, 64)
    scores = Scores(tuple(heads), tuple(neurons), "bert")
    written = heads.numpy().tobytes() + neurons.numpy().tobytes()
    assert draw(scores, heads=1, neurons=0.5, align=8).drawn["scores_sha256"] == hashlib.sha256(written).hexdigest()


def test_same_scores_give_the_same_bytes(tmp_path) -> None:
    torch.manual_seed(0)
    scores = Scores(tuple(torch.rand(3, 4)), tuple(torch.rand(3, 64)), "bert", seed=5)
    scores.save(tmp_path / "scores.safetensors")
    again = Scores.load(tmp_path / "scores.safetensors")
    draw(scores, heads=1, neurons=0.4, align=8).save(tmp_path / "a.json")
    draw(again, heads=1, neurons=0.4, align=8).save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert Ticket.load(tmp_path / "a.json") == draw(scores, heads=1, neurons=0.4, align=8)


@pytest.mark.parametrize(
    ("settings_", "sentence"),
    [
        ({"heads": 4, "neurons": 0}, "cannot remove 4 of 4 heads"),
        ({"heads": -1, "neurons": 0}, r"the number of heads to remove must be at least 0, got -1\."),
        ({"heads": 1.0, "neurons": 0}, r"must be in \[0, 1\)"),
        ({"heads": float("nan"), "neurons": 0}, r"must be in \[0, 1\)"),
        ({"heads": True, "neurons": 0}, "count or a fraction"),
        ({"heads": 0, "neurons": 0.99}, "every layer keeps between"),
        ({"heads": 0, "neurons": 0.5, "align": 128}, "larger than the 64"),
        ({"heads": 0, "neurons": 0.5, "align": 0}, "at least 1"),
        ({"heads": 0, "neurons": 0.01, "align": 40}, "every layer keeps between"),
        ({"heads": 0, "neurons": 0, "heads_scope": "all"}, "'layer' or 'global'"),
    ],
)
def test_impossible_budgets_are_refused(settings_: dict, sentence: str) -> None:
    scores = Scores(tuple(torch.rand(3, 4)), tuple(torch.rand(3, 64)), "bert")
    with pytest.raises(Refused, match=sentence):
        draw(scores, **settings_)


def shrunk(first: Ticket, seed: int) -> Scores:
    """Other scores, of what a first ticket has left."""
    random = torch.Generator().manual_seed(seed)
    vectors = [tuple(0.1 + torch.rand(first.layers, size, generator=random)) for size in (4, 64)]
    return Scores(vectors[0], vectors[1], "bert", within=first)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 99), st.sampled_from([1, 8]), st.sampled_from(["layer", "global"]))
def test_three_steps_end_at_the_size_of_one(seed: int, align: int, scope: str) -> None:
    random = torch.Generator().manual_seed(seed + 100)
    vectors = [tuple(torch.rand(3, size, generator=random)) for size in (4, 64)]
    whole = Scores(vectors[0], vectors[1], "bert")
    steps = [{"heads": heads, "neurons": share, "align": align} for heads, share in ((1, 0.125), (2, 0.25), (2, 0.5))]
    ticket = draw(whole, **steps[0], neurons_scope=scope)  # type: ignore[arg-type]
    for budget in steps[1:]:
        before, scores = ticket, shrunk(ticket, seed)
        ticket = draw(scores, **budget, neurons_scope=scope)  # type: ignore[arg-type]
        for kept, there, vectors in (
            (ticket.heads, before.heads, scores.heads),
            (ticket.neurons, before.neurons, scores.neurons),
        ):
            for mine, its, vector in zip(kept, there, vectors, strict=True):
                assert set(mine) <= set(its)
                lost = sorted(set(its) - set(mine))
                assert not lost or vector[list(mine)].min() >= vector[lost].max()  # the best of what was there
    once = draw(whole, **steps[-1], neurons_scope=scope)  # type: ignore[arg-type]
    assert (ticket.heads_kept, ticket.neurons_kept) == (once.heads_kept, once.neurons_kept)
    margin = ticket.drawn["margin"]
    assert margin["heads"] is None  # the last step took no head
    assert margin["neurons"] is not None


def test_a_budget_that_keeps_more_than_is_there_is_refused() -> None:
    first = Ticket(((0, 1, 2, 3), (1, 2)), (tuple(range(64)), tuple(range(1, 64, 2))), "bert", 4, 64)
    scores = shrunk(first, 0)
    with pytest.raises(Refused, match="removing 1 of the heads would keep 3 in layer 1, of which the cut model has 2"):
        draw(scores, heads=1, neurons=0.5, align=1)
    with pytest.raises(Refused, match="removing 0 of the neurons would keep 64 in layer 1"):
        draw(scores, heads=2, neurons=0)
    with pytest.raises(Refused, match="would keep 64 in layer 1"):
        draw(scores, heads=2, neurons=32, align=64, neurons_scope="global")
    assert draw(scores, heads=2, heads_scope="global", neurons=32, align=1).heads == first.heads
    assert draw(scores, heads=2, heads_scope="global", neurons=32, align=1).neurons == first.neurons


def test_scores_of_a_cut_model_are_saved_with_what_it_had(tmp_path) -> None:
    first = Ticket(((0, 3), (1, 2)), (tuple(range(0, 64, 2)), tuple(range(64))), "bert", 4, 64)
    scores, file = shrunk(first, 0), tmp_path / "scores.safetensors"
    scores.save(file)
    again = Scores.load(file)
    assert again.within == first
    assert draw(again, heads=2, neurons=0.5, align=1) == draw(scores, heads=2, neurons=0.5, align=1)
    whole = Scores(scores.heads, scores.neurons, "bert")
    whole.save(file)
    assert b"within" not in file.read_bytes()[:2000]  # the file of a whole model is what it always was
    assert Scores.load(file).within is None
    with pytest.raises(Refused, match="one value for each head and neuron of the whole one"):
        Scores(tuple(torch.rand(2, 2)), tuple(torch.rand(2, 32)), "bert", within=first)
