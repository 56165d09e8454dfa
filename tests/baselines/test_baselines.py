"""Each baseline against what its paper says, in plain loops."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForQuestionAnswering

from earlybert import Gates, Scores, Ticket, apply, draw
from earlybert.anatomy import Refused, of
from earlybert.anatomy.linear import linear_at
from earlybert.baselines import dense, imp, inverted, layerdrop, magnitude, random_ticket
from earlybert.baselines.sensitivity import Sensitivity
from earlybert.baselines.surgeon import Surgeon
from earlybert.cost import count
from earlybert.tasks.batches import Rows, Stream
from earlybert.ticket.refit import refit
from earlybert.ticket.surgery import mask
from earlybert.train.loop import Done
from earlybert.train.losses import SPAN

from ..conftest import HEADS, HIDDEN, LAYERS, NEURONS, tiny_batch, tiny_config, tiny_model
from ..families import build

SIZE = HIDDEN // HEADS


def searched(seed: int = 0) -> Scores:
    random = torch.Generator().manual_seed(seed)
    heads = tuple(torch.rand(LAYERS, HEADS, generator=random))
    return Scores(heads, tuple(torch.rand(LAYERS, NEURONS, generator=random)), "bert", seed=seed)


def test_random_heads_and_neurons_have_independent_seeds_and_any_overlap_is_chance() -> None:
    anatomy = of(tiny_model())
    first, again, other = (random_ticket.scores(anatomy, seed) for seed in (1, 1, 2))
    assert first.digest() == again.digest() != other.digest()
    heads, neurons = torch.stack(first.heads).flatten(), torch.stack(first.neurons).flatten()
    assert not torch.equal(heads, neurons[: len(heads)])
    kept = [set(draw(random_ticket.scores(anatomy, seed), heads=0, neurons=0.5, neurons_scope="layer", align=1).neurons[0])
            for seed in range(40)]  # fmt: skip
    overlaps = [len(a & b) / NEURONS for a, b in zip(kept[::2], kept[1::2], strict=True)]
    # half of one half: hypergeometric, standard deviation of one overlap 4/126 of 64 neurons
    assert np.mean(overlaps) == pytest.approx(0.25, abs=0.04)


def test_a_random_ticket_of_the_same_widths() -> None:
    ticket = draw(searched(), heads=5, neurons=0.4, heads_scope="global", align=1)
    other = random_ticket.like(ticket, 7)
    for what in ("heads", "neurons"):
        assert [len(kept) for kept in getattr(other, what)] == [len(kept) for kept in getattr(ticket, what)]
    assert other.neurons != ticket.neurons
    assert other == random_ticket.like(ticket, 7)
    apply(tiny_model(), other)
    alike = random_ticket.like(Ticket(((0, 1, 2, 3),), ((0, 1, 2, 3),), "bert", 16, 16), 7)
    assert alike.heads != alike.neurons  # drawn apart, as where the numbers differ


def test_the_inverted_ticket_keeps_what_the_ticket_removes() -> None:
    found = searched()  # heads and neurons may have learnt either sign, and the largest may be negative
    scores = replace(found, heads=tuple(-each for each in found.heads), neurons=tuple(0.5 - n for n in found.neurons))
    for scope in ("layer", "global"):
        kept = draw(scores, heads=0.5, neurons=0.5, heads_scope="layer", neurons_scope=scope, align=1)
        gone = draw(inverted.scores(scores), heads=0.5, neurons=0.5, heads_scope="layer", neurons_scope=scope, align=1)
        for ours, theirs in zip((*kept.heads, *kept.neurons), (*gone.heads, *gone.neurons), strict=True):
            assert not set(ours) & set(theirs)


def test_weight_magnitude_by_hand() -> None:
    model = tiny_model()
    found = magnitude.scores(model)
    weights = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    for index in range(LAYERS):
        layer = f"bert.encoder.layer.{index}."
        for head in range(HEADS):
            features = slice(head * SIZE, (head + 1) * SIZE)
            total = sum(
                (weights[f"{layer}attention.self.{part}.weight"][features] ** 2).sum()
                for part in ("query", "key", "value")
            )
            total += (weights[f"{layer}attention.output.dense.weight"][:, features] ** 2).sum()
            assert float(found.heads[index][head]) == pytest.approx(total**0.5, rel=1e-5)
        up, down = weights[f"{layer}intermediate.dense.weight"], weights[f"{layer}output.dense.weight"]
        expected = np.sqrt((up**2).sum(1) + (down**2).sum(0))
        np.testing.assert_allclose(found.neurons[index].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["taylor", "fisher"])
def test_sensitivity_is_that_of_single_examples(kind: Any) -> None:
    model, batch = tiny_model().eval(), tiny_batch(rows=6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sensitivity = Sensitivity(model.train(), kind)
    for part in (slice(0, 4), slice(4, 6)):  # batches of different sizes count by their examples
        sensitivity.add({name: value[part] for name, value in batch.items()})
    found = sensitivity.scores()
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    sums = [torch.zeros(LAYERS, HEADS), torch.zeros(LAYERS, NEURONS)]
    model.eval()
    with Gates(model, on="input") as gates:
        for row in range(6):
            loss = model(**{name: value[row : row + 1] for name, value in batch.items()}).loss
            for total, gradient in zip(sums, torch.autograd.grad(loss, gates.parameters()), strict=True):
                total += (gradient.abs() if kind == "taylor" else gradient.square()) / 6
    torch.testing.assert_close(torch.stack(found.heads), sums[0], rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(torch.stack(found.neurons), sums[1], rtol=1e-4, atol=1e-9)
    assert found.source == kind


def test_sensitivity_to_a_span_does_not_see_padding() -> None:
    """The same questions, padded further: the model's own loss would take in the logits there."""
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(tiny_config("bert"))
    short = {**tiny_batch(labels=False), **{name: torch.tensor([1, 4, 0, 5]) for name in SPAN}}
    long = {name: F.pad(value, (0, 8)) if value.dim() == 2 else value for name, value in short.items()}
    found = []
    for batch in (short, long):
        sensitivity = Sensitivity(model, "taylor")
        sensitivity.add(batch)
        found.append(sensitivity.scores())
    for one, other in zip((*found[0].heads, *found[0].neurons), (*found[1].heads, *found[1].neurons), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", [Sensitivity, Surgeon])
def test_scoring_is_said_to_cost_what_torch_counts(kind: Any) -> None:
    model, batch = tiny_model(attn_implementation="eager"), tiny_batch(rows=8, length=24)
    scorer = kind(model, "taylor") if kind is Sensitivity else kind(model)
    with FlopCounterMode(display=False) as counter:
        scorer.add(batch)
    said = scorer.flops(count(model), (8, 24), int(batch["attention_mask"].sum()))
    # a backward pass to the coefficients ends in the first layer, before its projections
    assert said == pytest.approx(counter.get_total_flops(), rel=0.1 if kind is Sensitivity else 1e-6)


def test_sensitivity_refuses_what_it_cannot_score() -> None:
    with pytest.raises(Refused, match="taylor or fisher"):
        Sensitivity(tiny_model(), "hessian")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["taylor", "fisher", "surgeon", "magnitude", "random"])
def test_scores_of_a_cut_model_speak_of_the_whole_one(kind: str) -> None:
    """Every unit that is there has the score it has in the model itself, at the place it has in the whole one."""
    ticket = draw(searched(), heads=5, heads_scope="global", neurons=0.5, align=1)
    model, batch = apply(tiny_model().eval(), ticket), tiny_batch()

    def scored(model: Any) -> Scores:
        if kind in ("magnitude", "random"):
            return magnitude.scores(model) if kind == "magnitude" else random_ticket.scores(of(model), 3)
        scorer = Surgeon(model) if kind == "surgeon" else Sensitivity(model, kind)  # pyright: ignore[reportArgumentType]
        scorer.add(batch)
        return scorer.scores()

    found = scored(model)
    assert found.within == ticket
    for scores, layers in ((found.heads, ticket.heads), (found.neurons, ticket.neurons)):
        for vector, kept in zip(scores, layers, strict=True):
            gone = sorted(set(range(len(vector))) - set(kept))
            assert (vector[gone] == 0).all()
            assert (vector[list(kept)] > 0).any()
    if kind in ("taylor", "fisher"):  # of the whole model with what is gone masked: the same function
        masked = tiny_model().eval()
        mask(masked, ticket)
        expected = scored(masked)
        for mine, its in zip((*found.heads, *found.neurons), (*expected.heads, *expected.neurons), strict=True):
            torch.testing.assert_close(mine, its * (mine != 0), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(("layers", "kept"), [(12, 8), (24, 16), (6, 4), (3, 2)])
def test_layerdrop_takes_a_third_of_the_layers_evenly(layers: int, kept: int) -> None:
    found = layerdrop.kept_layers(layers)
    assert len(found) == kept
    assert found[0] == 0
    assert found[-1] == layers - 1
    gone = sorted(set(range(layers)) - set(found))
    assert all(b - a == 3 for a, b in pairwise(gone))


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_skipped_layers_are_removed_layers(kind: str) -> None:
    model, batch = tiny_model(kind), tiny_batch()
    for module in model.modules():  # training, but without dropout
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = model.config.attention_dropout = 0.0
    for name, module in model.named_modules():
        if name.endswith(("attention.self", "attention")) and hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    whole = copy.deepcopy(model.eval())
    model.train()
    dropping = layerdrop.LayerDrop(model, count(model), rate=0.4, seed=3)
    seen = set()
    for step in range(12):
        assert not dropping(Done(step, torch.tensor(0.0), (), 1.0))  # ends nothing; the next step is number `step`
        seen.add(tuple(dropping.present))
        removed = copy.deepcopy(whole)
        layerdrop.remove_layers(removed, dropping.present)
        torch.testing.assert_close(model(**batch).logits, removed(**batch).logits)
        assert dropping.step([(4, 12)]) == pytest.approx(count(removed).step([(4, 12)]), rel=0.01)
        assert set(model.state_dict()) == set(whole.state_dict())  # a checkpoint holds all layers
        again = layerdrop.LayerDrop(copy.deepcopy(whole), count(whole), rate=0.4, seed=3, first=step)
        assert again.present == dropping.present  # as a resumed run would have it
    assert len(seen) > 3
    torch.testing.assert_close(model.eval()(**batch).logits, whole(**batch).logits)  # evaluated between steps
    dropping.stop()
    torch.testing.assert_close(model(**batch).logits, whole(**batch).logits)
    assert type(model) is type(whole)
    assert removed.config.num_hidden_layers == len(dropping.present)


def test_layers_are_dropped_at_their_rate() -> None:
    model = tiny_model()
    dropping = layerdrop.LayerDrop(model, count(model), seed=0)
    present = 0
    for step in range(600):
        dropping._draw(step)
        present += len(dropping.present)
    # 2 of 3 present; steps with none (1 in 27) keep one: 2 + 1/27
    assert present / 600 == pytest.approx(2 + 1 / 27, abs=4 * (2 / 3 / 600) ** 0.5)


def test_imp_decodes_the_papers_cost() -> None:
    """Sec. 4.4: IMP at 40 % on SQuAD takes 6x the time and 4.69x the FLOPs."""
    assert imp.cost()["trainings"] == 6
    assert imp.cost()["dense_flops_if_zeros_were_free"] == pytest.approx(4.69, abs=0.005)
    assert 1 - imp.densities()[-1] == pytest.approx(0.41, abs=0.001)


def test_imp_takes_a_tenth_of_the_rest_by_magnitude_over_all_matrices() -> None:
    model = tiny_model()
    theta_0 = copy.deepcopy(model)
    imp.masked(model)
    assert imp.sparsity(model) == 0
    before = {name: mask.clone() for name, mask in imp.masks(model).items()}
    for density in imp.densities(3)[1:]:
        for module, _ in imp.prunable(model):  # as if trained: the order changes from round to round
            module.weight_orig.data += 0.02 * torch.randn_like(module.weight_orig)
        weights = torch.cat([(module.weight_orig.abs()).flatten() for module, _ in imp.prunable(model)])
        kept = torch.cat([mask.flatten().bool() for mask in before.values()])
        imp.shrink(model)
        now = imp.masks(model)
        mask = torch.cat([mask.flatten().bool() for mask in now.values()])
        assert 1 - imp.sparsity(model) == pytest.approx(density, abs=1e-3)
        assert not (mask & ~kept).any()  # nothing comes back
        assert weights[kept & ~mask].max() <= weights[mask].min()
        before = {name: value.clone() for name, value in now.items()}
    fresh = copy.deepcopy(theta_0)  # rewinding: theta_0 under the masks
    imp.masked(fresh)
    imp.set_masks(fresh, before)
    fresh(**tiny_batch()).loss.backward()
    imp.harden(fresh)
    assert set(fresh.state_dict()) == set(theta_0.state_dict())
    for name, value in fresh.state_dict().items():
        mask = before.get(f"{name}_mask", torch.ones(1))
        assert torch.equal(value, theta_0.state_dict()[name] * mask)


def test_the_dense_rival_stops_at_the_flops() -> None:
    rows = Rows([[1] * length for length in range(4, 40)], None, [0] * 36)
    stream, cost = Stream(rows, batch_size=8), count(tiny_model())
    for padded in (True, False):
        budget = sum(cost.step(stream.shapes(step, padded=padded)) for step in range(7))
        assert dense.steps_within(budget, cost, stream, padded=padded) == 7
        assert dense.steps_within(budget - 1, cost, stream, padded=padded) == 6
    assert dense.steps_within(0, cost, stream, padded=True) == 1
    assert sum(length for _, length in stream.shapes(0, padded=False)) <= sum(r * n for r, n in stream.shapes(0))


def test_the_dense_rival_stops_at_the_time() -> None:
    seconds = {"ticket": 0.6, "search": 1.1, "matched": 0.9, "dense": 1.0}
    taken = {"ticket": 100, "search": 10}
    assert dense.steps_in_time(taken, 4.5, seconds=seconds) == 75  # 60 + 11 + 4.5 seconds of a second each
    assert dense.steps_in_time({**taken, "matched": 10}, 4.5, seconds=seconds) == 84
    assert dense.steps_in_time({"ticket": 1, "matched": 0}, 0.0, seconds={"ticket": 0.6, "dense": 1.0}) == 1


def test_all_linears_of_layers_can_be_pruned_and_nothing_else() -> None:
    model = tiny_model("distilbert")
    linears = [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layer" in name]
    assert {id(module) for module, _ in imp.prunable(model)} == {id(module) for module in linears}


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2", "gpt2", "llama"])
def test_other_families_take_every_baseline(family: str) -> None:
    """Fused, transposed and grouped projections are scored, masked, dropped and refitted like any other."""
    model = build(family).eval()
    batch = {"input_ids": torch.randint(5, 100, (6, 12)), "attention_mask": torch.ones(6, 12, dtype=torch.long)}
    anatomy = of(model)
    scores = magnitude.scores(model)
    total = sum(float(part.square().sum()) for part in (*scores.heads, *scores.neurons))
    names = {name for layer in anatomy.layers for name in layer.linears}
    weights = sum(float(model.get_submodule(name).weight.detach().square().sum()) for name in names)
    assert total == pytest.approx(weights, rel=1e-4)  # every weight that can go belongs to one unit
    ticket = draw(scores, heads=1, neurons=0.5, align=1)
    small = apply(model, ticket)
    error = (small(**batch).logits - model(**batch).logits).abs().mean()
    batches = [{**batch, "input_ids": torch.randint(5, 100, (6, 12))} for _ in range(8)]
    results = refit(small, model, batches)
    assert sum(result.after for result in results) < sum(result.before for result in results)
    assert torch.isfinite(error)

    labelled = {**batch, "labels": torch.randint(0, 2, (6,))}
    sensitivity = Sensitivity(model, "fisher")
    sensitivity.add(labelled)
    assert torch.stack(sensitivity.scores().heads).shape == (3, anatomy.num_heads)

    removed = copy.deepcopy(model)
    layerdrop.remove_layers(removed, [0, 2])
    dropping = layerdrop.LayerDrop(model, count(model), rate=0.5, seed=0)
    dropping.present = [0, 2]
    dropping._stack.training = True  # the list alone, so that nothing else drops out
    torch.testing.assert_close(model(**batch).logits, removed(**batch).logits)
    dropping.stop()

    imp.masked(model)
    imp.shrink(model)
    model(**batch)
    with pytest.raises(Refused, match="under pruning masks"):
        apply(model, ticket)
    imp.harden(model)


def test_shared_layers_cannot_be_dropped_or_refitted() -> None:
    model = build("albert")
    with pytest.raises(Refused, match="not a plain list"):
        layerdrop.remove_layers(model, [0, 2])
    anatomy = of(model)
    scores = random_ticket.scores(anatomy, 0)
    batch = {"input_ids": torch.randint(5, 100, (6, 12)), "attention_mask": torch.ones(6, 12, dtype=torch.long)}
    with pytest.raises(Refused, match="refits need layers that run once"):
        refit(apply(model, draw(scores, heads=1, neurons=0.5, align=1)), model, [batch] * 3)
    with pytest.raises(Refused, match="surgeon scores need layers that run once"):
        Surgeon(model)


def test_the_surgeon_says_what_a_refit_would_be_left_with() -> None:
    """For single units: the ridged least-squares problem without the unit, solved outright in float64 numpy."""
    model = tiny_model().eval()
    batches = [tiny_batch(rows=8, length=24, seed=seed) for seed in range(6)]
    layer = of(model).layers[1]
    seen: dict[str, list[torch.Tensor]] = {layer.output: [], layer.down: []}
    grabs = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0]))
        for name in seen
    ]
    surgeon = Surgeon(model.train())
    for batch in batches:
        surgeon.add(batch)
    for grab in grabs:
        grab.remove()
    assert model.training
    scores = surgeon.scores()
    widths = [linear_at(model, name).weight.shape for layer in of(model).layers for name in (layer.output, layer.down)]
    assert surgeon.scores_flops() == sum(2 * inputs**3 + 2 * outputs * inputs**2 for outputs, inputs in widths)
    present = torch.cat([batch["attention_mask"].bool().flatten() for batch in batches])
    for name, found, size in ((layer.output, scores.heads[1], SIZE), (layer.down, scores.neurons[1], 1)):
        x = torch.cat([each.reshape(-1, each.shape[-1]) for each in seen[name]])[present].detach().double().numpy()
        weight = model.get_submodule(name).weight.detach().double().numpy().T  # [features, hidden]
        pull = 0.01 * (x**2).mean()
        centred = x - x.mean(0)
        second = centred.T @ centred / len(x)
        energy = np.trace(weight.T @ second @ weight)
        for unit in (0, 2, len(found) - 1):
            gone = np.arange(unit * size, (unit + 1) * size)
            kept = np.setdiff1d(np.arange(x.shape[1]), gone)
            # change of the kept weights that makes up for the unit: min over D of |X_kept D - X_gone W_gone|^2 + pull ...
            ridged = second + pull * np.eye(len(second))
            change = np.linalg.solve(ridged[np.ix_(kept, kept)], ridged[np.ix_(kept, gone)] @ weight[gone])
            total = np.zeros_like(weight)
            total[kept], total[gone] = change, -weight[gone]
            assert float(found[unit]) == pytest.approx(np.trace(total.T @ ridged @ total) / energy, rel=1e-4)


def test_the_surgeon_gives_less_for_what_repeats() -> None:
    def worth(model: Any) -> float:
        surgeon = Surgeon(model)
        for seed in range(6):
            surgeon.add(tiny_batch(rows=8, length=24, seed=seed))
        return float(surgeon.scores().neurons[0][0])

    model = tiny_model().eval()
    alone = worth(model)
    up = model.get_submodule(of(model).layers[0].up)
    up.weight.data[1:4], up.bias.data[1:4] = up.weight.data[0], up.bias.data[0]
    assert worth(model) < 0.6 * alone  # by magnitude it is worth what it was
