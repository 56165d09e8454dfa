"""A step taken apart: the parts are the step, and nothing is left behind."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from earlybert.cost import memory
from earlybert.train.engine import build
from earlybert.train.lamb import lamb
from earlybert.train.optimizer import adamw
from earlybert.train.profile import MOST, PARTS, Marks, profile
from earlybert.train.step import EagerStep, unmarked
from tests.conftest import tiny_batch, tiny_model


def made(engine: str = "eager") -> EagerStep:
    model = tiny_model("bert").train()
    return build(engine, model, adamw(model, lr=1e-2))  # pyright: ignore[reportArgumentType]


def batches(steps: int, accumulate: int = 1) -> list[list[dict[str, torch.Tensor]]]:
    return [[tiny_batch(seed=accumulate * n + k) for k in range(accumulate)] for n in range(steps)]


@pytest.mark.parametrize("engine", ["eager", "fast"])
def test_the_model_and_the_random_state_are_as_they_were(engine: str) -> None:
    step = made(engine)
    step(step.prepare(batches(1)[0]))
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    grads = [p.grad for p in step.model.parameters()]
    state = torch.get_rng_state()
    found = profile(step, batches(3), 3)
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())
    assert all(now is then for now, then in zip((p.grad for p in step.model.parameters()), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert step.mark is unmarked
    assert found["steps"] == 3
    assert list(found["seconds"]) == ["host", "forward", "backward", "optimizer"]
    assert all(seconds > 0 for seconds in found["seconds"].values())


def slow(monkeypatch: pytest.MonkeyPatch, step: EagerStep, **seconds: float) -> None:
    """Make each part take at least so long."""

    def slowed(name: str, owner: Any, attribute: str) -> None:
        real = getattr(owner, attribute)

        def wait(*args: Any, **kwargs: Any) -> Any:
            time.sleep(seconds[name])
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, wait)

    slowed("host", step, "prepare")
    slowed("forward", step, "loss")
    slowed("backward", torch.Tensor, "backward")
    slowed("optimizer", step.optimizer, "step")


def test_each_part_is_told_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    step = made()
    plain = profile(step, batches(3), 3)["seconds"]
    waits = {"host": 0.02, "forward": 0.04, "backward": 0.08, "optimizer": 0.16}
    slow(monkeypatch, step, **waits)
    found = profile(step, batches(3), 3)["seconds"]
    for part, waited in waits.items():
        assert waited <= found[part] < waited + 3 * plain[part] + 0.015, part


def test_of_many_micro_batches_some_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    step = made()
    seen: list[int] = []
    real = step.prepare
    monkeypatch.setattr(step, "prepare", lambda some: seen.append(len(some)) or real(some))
    slow(monkeypatch, step, host=0.0, forward=0.005, backward=0.0, optimizer=0.0)
    found = profile(step, batches(1, accumulate=2 * MOST), 1)["seconds"]
    assert seen == [MOST]
    assert found["forward"] >= 2 * MOST * 0.005


def test_fewer_steps_than_asked_for_and_a_step_without_an_inside() -> None:
    assert profile(made(), batches(2), 5)["steps"] == 2
    step = made()
    step.splits = lambda prepared: False  # pyright: ignore[reportAttributeAccessIssue]
    found = profile(step, batches(2), 2)
    assert list(found["seconds"]) == ["host", "whole"]
    assert set(found["seconds"]) <= set(PARTS)


def test_marks_cover_all_of_the_time() -> None:
    marks = Marks(torch.device("cpu"))
    began = time.perf_counter()
    for part in ("a", "b", "a"):
        marks(part)
        time.sleep(0.01)
    found, whole = marks.read(), time.perf_counter() - began
    assert list(found) == ["a", "b"]
    assert found["a"] >= 0.02
    assert sum(found.values()) == pytest.approx(whole, abs=2e-3)


@pytest.mark.parametrize("optimizer", [adamw, lamb])
def test_memory_by_shapes_is_what_training_holds(optimizer: Any) -> None:
    model = tiny_model("bert").train()
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    step = EagerStep(model, optimizer(model, lr=1e-3))
    step(step.prepare([tiny_batch()]))

    def size(tensors: Any) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    state = [value for each in step.optimizer.state.values() for value in each.values() if torch.is_tensor(value)]
    held = memory(model)
    assert held.parameters == size(model.parameters())
    assert held.gradients == size(p.grad for p in model.parameters() if p.grad is not None)
    assert held.optimizer == size(tensor for tensor in state if tensor.dim() > 0)
