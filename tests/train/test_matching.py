"""Hidden-state matching: its gradient against finite differences and autograd by hand, fast against eager."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from earlybert import Refused, apply
from earlybert.cost import count
from earlybert.train.fast import RaggedStep
from earlybert.train.matching import MatchedCost, matching
from earlybert.train.optimizer import adamw
from earlybert.train.step import EagerStep
from tests.conftest import LAYERS, tiny_model, uneven

from .test_fast import batch_of, build

LENGTHS = [9, 4, 7]


def by_hand(student: Any, teacher: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Task loss, and the distance written out with `output_hidden_states`."""
    present = batch["attention_mask"].bool()
    output = student(**batch, output_hidden_states=True)
    with torch.no_grad():
        aims = copy.deepcopy(teacher).eval()(**batch, output_hidden_states=True).hidden_states
    parts = [
        (mine[present] - its[present]).square().mean() / its[present].square().mean()
        for mine, its in zip(output.hidden_states[1:], aims[1:], strict=True)
    ]
    assert len(parts) == LAYERS
    return output.loss, torch.stack(parts).mean()


def pair(family: str = "bert", **changes: Any) -> tuple[Any, Any]:
    """A ticket and the model it was cut from, no dropout, some distance apart."""
    teacher = build(family, "classification", cut=False, **changes)
    for name, parameter in teacher.named_parameters():
        if parameter.dim() == 2 and "embed" not in name:
            parameter.data *= 5  # a fresh model's layers hardly change what goes through them
    return apply(teacher, uneven(family)), teacher


@pytest.mark.parametrize("make", [EagerStep, RaggedStep])
def test_gradient_is_that_of_the_loss_written_out(make: type[EagerStep]) -> None:
    student, teacher = pair()
    batch = batch_of(LENGTHS, "classification", seed=1)
    task, distance = by_hand(student, teacher, batch)
    expected = torch.autograd.grad(task + 3 * distance, list(student.parameters()), allow_unused=True)
    # rate 0: the gradients of a step stay to be looked at, the weights do not move
    step = make(student, torch.optim.SGD(student.parameters(), lr=0.0), max_grad_norm=None)
    with matching(step, teacher, 3.0):
        loss = step(step.prepare([batch]))
    assert float(loss) == pytest.approx(float(task.detach()), rel=1e-5)  # the task's alone
    assert float(distance.detach()) > 1e-3
    for parameter, gradient in zip(student.parameters(), expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_gradient_against_finite_differences() -> None:
    student, teacher = (model.double() for model in pair())
    batch = batch_of(LENGTHS, "classification", seed=2)
    step = EagerStep(student, torch.optim.SGD(student.parameters(), lr=0.0), max_grad_norm=None)
    with matching(step, teacher, 5.0):
        step(step.prepare([batch]))
    weight = student.bert.encoder.layer[0].output.dense.weight
    gradient = weight.grad.clone()
    direction = torch.randn_like(weight)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * 1e-4 * direction)
            task, distance = by_hand(student, teacher, batch)
            weight.sub_(sign * 1e-4 * direction)
        ends.append(float((task + 5 * distance).detach()))
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


@pytest.mark.parametrize("exact", [False, True])
def test_fast_like_eager_and_the_student_comes_nearer(family: str, exact: bool) -> None:
    student, teacher = pair(family)
    results = []
    for make in (EagerStep, lambda *a: RaggedStep(*a, exact=exact)):
        mine = copy.deepcopy(student)
        step = make(mine, adamw(mine, lr=1e-3))
        before = float(by_hand_distance(mine, teacher))
        with matching(step, teacher, 10.0):
            losses = [float(step(step.prepare([batch_of(LENGTHS, "classification", s)]))) for s in range(12)]
        assert float(by_hand_distance(mine, teacher)) < 0.9 * before
        results.append((losses, mine.state_dict()))
    (eager, one), (fast, other) = results
    assert fast == pytest.approx(eager, rel=1e-3, abs=1e-4)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=2e-3, atol=2e-4)


def by_hand_distance(student: Any, teacher: Any) -> Tensor:
    with torch.no_grad():
        return by_hand(student, teacher, batch_of(LENGTHS, "classification", seed=50))[1]


def test_micro_batches_weigh_by_their_labels_and_evaluation_between_steps_does_no_harm() -> None:
    student, teacher = pair()
    gradients = []
    parts = [batch_of([5, 5, 5], "classification", 1), batch_of([5], "classification", 2)]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    for micro_batches in ([whole], parts):
        mine = copy.deepcopy(student)
        step = EagerStep(mine, torch.optim.SGD(mine.parameters(), lr=0.0), max_grad_norm=None)
        with matching(step, teacher, 2.0):
            with torch.no_grad():
                mine.eval()(**batch_of([3], "classification", 9))
            mine.train()
            step(step.prepare(micro_batches))
        gradients.append(mine.classifier.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_hidden_states_of_micro_batches_weigh_by_their_tokens() -> None:
    student, teacher = pair()
    whole = batch_of([3, 4, 30, 31], "classification", 1)
    parts = [{name: value[rows] for name, value in whole.items()} for rows in (slice(0, 2), slice(2, 4))]
    for make in (EagerStep, RaggedStep):
        gradients = []
        for micro_batches in ([whole], parts):
            mine = copy.deepcopy(student)
            step = make(mine, torch.optim.SGD(mine.parameters(), lr=0.0), max_grad_norm=None)
            with matching(step, teacher, 2.0):
                step(step.prepare(micro_batches))
            gradients.append(torch.cat([p.grad.flatten() for p in mine.parameters() if p.grad is not None]))
        # not to the bit: each is relative to the mean square of its own teacher's states
        assert (gradients[0] - gradients[1]).norm() < 0.01 * gradients[0].norm()


def test_everything_is_put_back() -> None:
    student, teacher = pair()
    step = EagerStep(student, torch.optim.SGD(student.parameters(), lr=0.0))
    teacher.train()
    with matching(step, teacher, 1.0):
        assert not teacher.training
    assert teacher.training
    assert step.aim is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (student, teacher) for m in net.modules())


def test_the_teacher_is_paid_for() -> None:
    student, teacher = pair()
    small, full, shapes = count(student), count(teacher), [(3, 9), (1, 4)]
    assert MatchedCost(small, full).step(iter(shapes)) == small.step(shapes) + full.forward(shapes)


def test_a_step_that_would_not_add_it_is_refused() -> None:
    class Captured(EagerStep):
        def __call__(self, micro_batches: Any) -> Tensor:
            return super().__call__(micro_batches)

    student, teacher = pair()
    step = Captured(student, torch.optim.SGD(student.parameters(), lr=0.0))
    with pytest.raises(Refused, match="Captured is captured"), matching(step, teacher, 1.0):
        pass


def test_other_layers_are_refused() -> None:
    student, _ = pair()
    step = EagerStep(student, torch.optim.SGD(student.parameters(), lr=0.0))
    with pytest.raises(Refused, match="the same layers"), matching(step, tiny_model("distilbert"), 1.0):
        pass
