"""The searching stage: what it returns, what it leaves behind (nothing), and the step under it."""

from __future__ import annotations

import copy
import random
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import earlybert as eb
from earlybert.ticket import Gates
from earlybert.train import Diverged, linear
from earlybert.train.engine import Engine
from earlybert.train.optimizer import adamw
from earlybert.train.step import EagerStep
from tests.conftest import HEADS, LAYERS, NEURONS, tiny_batch, tiny_config, tiny_model

BATCHES = [tiny_batch(seed=seed, length=8 + 2 * seed) for seed in range(3)]


def search(model: nn.Module, batches=BATCHES, **settings) -> eb.Scores:
    return eb.search(model, batches, **{"steps": 6, "lr": 1e-3, "precision": "no", **settings})


def test_a_model_that_gives_tuples_is_searched_alike() -> None:
    plain, tuples = search(tiny_model()), search(tiny_model(return_dict=False))
    for a, b in zip((*plain.heads, *plain.neurons), (*tuples.heads, *tuples.neurons), strict=True):
        assert torch.equal(a, b)


def test_everything_is_put_back(family: str, tmp_path: Path) -> None:
    model = tiny_model(family).eval()
    model.classifier.train()
    model.zero_grad()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    model.register_buffer("passes", torch.tensor(0))  # as the statistics of a normalisation that counts along
    counted: list[int] = []
    model.register_forward_pre_hook(lambda module, _: counted.append(int(module.passes.add_(1))))
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    config = copy.deepcopy(model.config.to_dict())
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    drawing = (batch for batch in cycle(BATCHES) if random.random() + np.random.rand() + torch.rand(1) >= 0)
    scores = search(model, drawing, history=tmp_path / "history.bin")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert counted[-1] >= 6
    assert [m.training for m in model.modules()] == modes
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    grads = [parameter.grad for parameter in model.parameters()]
    assert torch.equal(grads[0], torch.ones_like(grads[0]))
    assert all(grad is None for grad in grads[1:])
    assert [tuple(v.shape) for v in (scores.heads[0], scores.neurons[0])] == [(HEADS,), (NEURONS,)]
    assert len(scores.heads) == LAYERS
    assert (scores.steps, scores.info["ended"]) == (6, "cap")
    history = eb.History(tmp_path / "history.bin")
    assert len(history) == 6
    assert np.array_equal(history.coefficients(6, "neurons"), torch.stack(scores.neurons).numpy())


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_the_kind_of_problem_is_put_back_after_a_failure_too(problem: str | None) -> None:
    model = tiny_model(problem_type=problem)
    model.classifier.weight.data.fill_(float("inf"))
    batch = {**tiny_batch(), "labels": torch.ones(4, 2)} if problem else tiny_batch()
    with pytest.raises(Diverged):
        search(model, [batch])
    assert model.config.problem_type == problem


def test_bfloat16_weights_are_warned_of_since_most_changes_are_lost(caplog: pytest.LogCaptureFixture) -> None:
    changed = {}
    for dtype in (torch.float32, torch.bfloat16):
        caplog.clear()
        model = tiny_model().to(dtype)
        found = search(model, steps=3, lr=2e-5, keep_weights=True).weights
        assert found is not None
        matrices = {name: value for name, value in model.state_dict().items() if ".layer." in name and value.dim() == 2}
        total = sum(value.numel() for value in matrices.values())
        changed[dtype] = sum(int((found[name] != value).sum()) for name, value in matrices.items()) / total
        said = [record.getMessage() for record in caplog.records if record.name == "earlybert"]
        assert len(said) == (dtype == torch.bfloat16)
        assert all("weights are bfloat16" in line and "load it in float32" in line for line in said)
    assert changed[torch.float32] > 0.9
    assert changed[torch.bfloat16] < 0.5


def test_against_a_plain_loop_with_dropout(family: str) -> None:
    """The same steps written out with torch.optim and forward pre-hooks."""
    model = tiny_model(family)
    torch.manual_seed(7)
    got = search(model, steps=5, l1=(1e-2, 1e-3), gate_lr=3e-3, weight_decay=0.1, schedule=linear(10))
    assert (got.info["l1"], got.info["lr"], got.info["gate_lr"]) == ([1e-2, 1e-3], 1e-3, 3e-3)

    torch.manual_seed(7)
    reference = copy.deepcopy(model).train()
    gates = Gates(reference, on="input").attach()
    decayed = [p for p in reference.parameters() if p.dim() > 1]
    plain = [p for p in reference.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "lr": 1e-3, "weight_decay": 0.1},
            {"params": plain, "lr": 1e-3, "weight_decay": 0.0},
            {"params": gates.parameters(), "lr": 3e-3, "weight_decay": 0.0},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / 10)
    for done in range(5):
        optimizer.zero_grad()
        loss = reference(**BATCHES[done % 3]).loss
        loss.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        penalty = 1e-2 * gates.heads.abs().sum() + 1e-3 * gates.neurons.abs().sum()
        penalty.backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(torch.stack(got.heads), gates.heads.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.stack(got.neurons), gates.neurons.detach(), rtol=1e-5, atol=2e-4)


def test_two_searches_are_bit_equal_and_keep_weights_gives_theta_t() -> None:
    model = tiny_model()
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(search(model, keep_weights=True))
    first, second = results
    assert first.digest() == second.digest()
    assert first.weights is not None
    assert second.weights is not None
    assert set(first.weights) == set(model.state_dict())
    assert all(torch.equal(value, second.weights[name]) for name, value in first.weights.items())
    assert not torch.equal(first.weights["classifier.weight"], model.classifier.weight)
    small = eb.apply(model, eb.draw(first, heads=1, neurons=0.4, align=8), weights=first)
    assert torch.equal(small.classifier.weight, first.weights["classifier.weight"])


def test_accumulation_is_one_large_batch() -> None:
    """Uneven micro-batches, and L1 once a step, not once a micro-batch."""
    big = tiny_batch(rows=6, length=10)
    parts = [{name: value[a:b] for name, value in big.items()} for a, b in ((0, 1), (1, 4), (4, 6))]
    model = tiny_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    whole = search(model, [big], steps=3, l1=0.05)
    split = search(model, parts, steps=3, l1=0.05, accumulate=3)
    torch.testing.assert_close(torch.stack(whole.heads), torch.stack(split.heads), rtol=1e-5, atol=1e-6)
    # The gradient of a coefficient close to 0 may change sign by rounding; no more than that may differ.
    assert (torch.stack(whole.neurons) - torch.stack(split.neurons)).abs().gt(1e-5).float().mean() < 0.02


def test_gradients_are_clipped_without_the_coefficients() -> None:
    model = tiny_model().train()
    with Gates(model) as gates:
        optimizer = adamw(model, lr=0.0, gates=gates)
        step = EagerStep(model, optimizer, max_grad_norm=1e-3, gates=gates, l1=(1.0, 1.0))
        step(step.prepare([BATCHES[0]]))
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert gates.neurons.grad.norm() > 10


def test_a_rate_of_0_leaves_the_coefficients_where_they_are() -> None:
    scores = search(tiny_model(), gate_lr=0.0)
    assert all((row == 1).all() for row in (*scores.heads, *scores.neurons))


@pytest.mark.parametrize("cap", [50, 6])
def test_stop_rule_ends_the_search_and_nothing_after_it_is_computed(cap: int, tmp_path: Path) -> None:
    """A mask that settles at the last step that it may take has settled, as the callback says, too."""
    rule = eb.Settled(heads=1, neurons=0.4, every=2, window=1, threshold=1.0, min_steps=4)
    scores = search(tiny_model(), steps=cap, stop=rule, history=tmp_path / "history.bin")
    assert (scores.steps, scores.info["ended"], scores.info["cap"]) == (6, "settled", cap)
    assert [step for step, *_ in scores.info["distances"]] == [6]  # between the checks at 4 and 6
    assert len(eb.History(tmp_path / "history.bin")) == 6


def test_iterators_end_lists_go_round_and_bad_input_is_refused() -> None:
    model = tiny_model()
    assert search(model, iter(BATCHES), steps=50).info["ended"] == "data"
    assert search(model, BATCHES[:1], steps=4).steps == 4
    for batches, settings, sentence in (
        ([], {}, "no batches"),
        (iter(()), {}, "no batches"),
        (BATCHES, {"steps": 0}, "at least 1 step"),
        (BATCHES, {"lr": -1.0}, "lr must be at least 0"),
        (BATCHES, {"gate_lr": -1.0}, "gate_lr must be"),
        ([tiny_batch(labels=False)], {}, "labels in every batch"),
        (BATCHES, {"l1": -1.0}, "l1 must be"),
        (BATCHES, {"l1": float("nan")}, "l1 must be"),
        (BATCHES, {"precision": "fp8"}, "precision must be"),
    ):
        with pytest.raises(eb.Refused, match=sentence):
            search(model, batches, **settings)


def test_frozen_weights_and_bare_encoders() -> None:
    frozen = tiny_model()
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
    assert (torch.stack(search(frozen, max_grad_norm=None).neurons) != 1).any()
    with pytest.raises(eb.Refused, match="needs a task head"):
        search(tiny_model(head=False), [tiny_batch(labels=False)])


def test_a_diverged_search_says_where_and_puts_the_model_back() -> None:
    model = tiny_model("bert")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Diverged, match="at step 2"):
        search(model, lr=float("inf"), steps=4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "forward" not in vars(model.bert.encoder.layer[0].output.dense)


def test_bf16_search_moves_the_coefficients() -> None:
    scores = search(tiny_model(), precision="bf16", lr=2e-5, steps=3)
    moved = torch.stack(scores.neurons) - 1
    assert (moved != 0).float().mean() > 0.99
    assert moved.abs().max() <= 3.1 * 2e-5


@pytest.mark.parametrize("engine", ["eager", "fast"])
def test_a_micro_batch_whose_labels_are_all_ignored_weighs_nothing(engine: Engine) -> None:
    """Its mean loss is not a number; the step is that of the others, as of one large batch."""
    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForTokenClassification.from_config(tiny_config("bert", num_labels=3, **still))
    labelled = {**tiny_batch(labels=False), "labels": torch.arange(48).reshape(4, 12) % 3}
    ignored = {**labelled, "labels": torch.full((4, 12), -100)}
    settings = {"steps": 3, "engine": engine}
    alone = search(model, [labelled], **settings)
    both = search(model, [labelled, ignored], accumulate=2, **settings)
    first = search(model, [ignored, labelled], accumulate=2, **settings)
    for other in (both, first):
        for mine, theirs in zip(alone.neurons, other.neurons, strict=True):
            assert torch.equal(mine, theirs)
    for batches, accumulate in (([ignored], 1), ([ignored, ignored], 2)):
        with pytest.raises(eb.Refused, match="no label of this step counts"):
            search(model, batches, accumulate=accumulate, **settings)


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        (tiny_batch(), "a single batch; put it in a list"),
        ([tuple(tiny_batch().values())], "must be a dict that the model accepts, got a tuple"),
        (iter([tuple(tiny_batch().values())]), "must be a dict that the model accepts, got a tuple"),
        ([{**tiny_batch(), "sentence": ["a"] * 4}], "'sentence' of a batch is a list, not a tensor"),
        ([{**tiny_batch(), "token_type_ids": None}], "'token_type_ids' of a batch is a NoneType, not a tensor"),
    ],
)
def test_batches_of_another_kind_are_refused(batches: Any, sentence: str) -> None:
    with pytest.raises(eb.Refused, match=sentence):
        search(tiny_model(), batches)


def test_float16_weights_are_refused() -> None:
    with pytest.raises(eb.Refused, match="float16"):
        search(tiny_model().half())


@pytest.mark.parametrize("kind", [AutoModelForSequenceClassification, AutoModelForQuestionAnswering])
def test_without_an_attention_mask_every_place_is_attended_to(kind: Any) -> None:
    torch.manual_seed(0)
    model = kind.from_config(tiny_config("bert"))
    names = ("labels",) if kind is AutoModelForSequenceClassification else ("start_positions", "end_positions")
    bare = {"input_ids": tiny_batch()["input_ids"], **{name: torch.tensor([1, 0, 1, 0]) for name in names}}
    full = {**bare, "attention_mask": torch.ones(4, 12, dtype=torch.long)}
    for engine in ("eager", "fast"):
        one, two = (search(model, [batch], engine=engine) for batch in (bare, full))
        assert all(torch.equal(a, b) for a, b in zip(one.neurons, two.neurons, strict=True))


def test_what_a_search_is_rehearsed_on_is_searched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine believed to have a GPU whose steps are found wrong, so that the batch is asked for twice."""
    tried: list[Any] = []
    monkeypatch.setattr("earlybert.train.engine._device", lambda _: torch.device("cuda"))
    monkeypatch.setattr("earlybert.train.engine._no_graph", lambda *_, **__: "this is a test.")
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    found = []
    for fault in (None, "it is wrong."):
        monkeypatch.setattr(
            "earlybert.train.engine.rehearse", lambda *args, fault=fault: tried.append(args[2]) or fault
        )
        found.append(search(model, iter(BATCHES), engine="fast"))
    assert [len(sample) for sample in tried] == [1, 1]
    assert found[0].steps == found[1].steps == 3
    torch.testing.assert_close(found[0].heads, found[1].heads, rtol=1e-4, atol=1e-5)
    with pytest.raises(eb.Refused, match="no batches"):
        search(model, iter([]), engine="fast")
