"""What every family has to pass when a cut model is cut again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import earlybert
from earlybert import Refused, Ticket, apply, rebind, ticket_of
from earlybert.anatomy import of

from .families import FAMILIES, HEADS, NEURONS, build, inputs_of, uneven

families = pytest.mark.parametrize("name", FAMILIES)


def less(first: Ticket) -> Ticket:
    """What a second cut keeps of a first: all of the first layer of several, of the others some, not the first."""
    whole = 0 if first.layers > 1 else None
    heads = tuple(kept if number == whole else kept[-2:] for number, kept in enumerate(first.heads))
    neurons = tuple(kept if number == whole else kept[1::2] for number, kept in enumerate(first.neurons))
    return Ticket(heads, neurons, first.model_type, first.num_heads, first.num_neurons)


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


@families
def test_cut_twice_is_cut_once_by_the_second_ticket(name: str, tmp_path: Path) -> None:
    """The same tensors, configuration and logits, in place, from a copy and from a folder."""
    model = build(name)
    first, batch = uneven(model), inputs_of(model)
    second = less(first)
    once, between = apply(model, second), apply(model, first)
    expected, before = logits(once, batch), logits(between, batch)
    assert (before - expected).abs().max() > 1e-3
    earlybert.save(between, tmp_path / "between")
    stored = earlybert.load(tmp_path / "between", attn_implementation="eager")
    twice = apply(between, second)
    assert torch.equal(logits(between, batch), before)
    for cut in (twice, copy.deepcopy(twice), apply(stored, second), apply(between, second, inplace=True)):
        torch.testing.assert_close(logits(cut, batch), expected, rtol=0, atol=1e-6)  # loaded tensors lie elsewhere
        assert cut.state_dict().keys() == once.state_dict().keys()
        assert all(torch.equal(value, once.state_dict()[key]) for key, value in cut.state_dict().items())
        assert of(cut).left == of(once).left
        assert cut.config.earlybert == once.config.earlybert
        assert ticket_of(cut) == second
    assert torch.equal(logits(apply(twice, second), batch), expected)
    with pytest.raises(
        Refused, match=r"already been cut: (head|neuron) \d+ of layer \d, which this ticket keeps, is gone"
    ):
        apply(twice, first)
    earlybert.save(twice, tmp_path / "twice")
    loaded = earlybert.load(tmp_path / "twice", attn_implementation="eager")
    torch.testing.assert_close(logits(loaded, batch), expected, rtol=0, atol=1e-6)


@families
def test_an_optimizer_follows_both_cuts(name: str) -> None:
    """Through two cuts its moments are those that one cut of the whole model's gives."""
    model = build(name)
    first, batch = uneven(model), inputs_of(model, labels=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(**batch).loss.backward()
    optimizer.step()
    other_model, other = copy.deepcopy((model, optimizer))
    once = apply(other_model, less(first))
    rebind(other, other_model, once)
    between = apply(model, first)
    rebind(optimizer, model, between)
    twice = apply(between, less(first))
    rebind(optimizer, between, twice)
    assert {p for group in optimizer.param_groups for p in group["params"]} == set(twice.parameters())
    expected, compared = dict(once.named_parameters()), 0
    for key, parameter in twice.named_parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert (parameter in optimizer.state) == (expected[key] in other.state)
            if parameter in optimizer.state:
                assert torch.equal(optimizer.state[parameter][moment], other.state[expected[key]][moment]), key
                compared += 1
    assert compared > 20
    with pytest.raises(Refused, match="is gone"):
        rebind(optimizer, twice, between)


@families
def test_a_cut_model_is_searched_drawn_from_and_cut(name: str) -> None:
    """Indices are those of the whole model, and budgets count from it."""
    model = build(name)
    batches = [inputs_of(model, labels=True)]
    scores = earlybert.search(model, batches, steps=1)
    first = earlybert.draw(scores, heads=1, neurons=16, neurons_scope="layer", align=1)
    small = apply(model, first)
    before = {key: value.clone() for key, value in small.state_dict().items()}
    found = earlybert.search(small, batches, steps=2, lr=1e-2, precision="no", keep_weights=True)
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    assert found.within == first
    for vector, kept in zip((*found.heads, *found.neurons), (*first.heads, *first.neurons), strict=True):
        assert torch.nonzero(vector).flatten().tolist() == list(kept)
        assert (vector[list(kept)] != 1).any()
    second = earlybert.draw(found, heads=2, neurons=0.5, align=1)
    smaller = apply(small, second, weights=found)
    assert [len(kept) for kept in second.heads] == [HEADS - 2] * second.layers
    assert second.neurons_kept == NEURONS // 2 * second.layers
    assert ticket_of(smaller) == second
    with pytest.raises(Refused, match=r"would keep 4 in layer 0, of which the cut model has 3"):
        earlybert.draw(found, heads=0, neurons=0.5, align=1)
