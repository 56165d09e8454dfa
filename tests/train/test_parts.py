"""A step of several processes, each process pretended in turn: their gradients add up to those of one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from earlybert import Refused
from earlybert.train.engine import build as build_step
from earlybert.train.fast import RaggedStep
from earlybert.train.matching import matching
from earlybert.train.ranks import Ranks
from earlybert.train.step import EagerStep

from .test_fast import batch_of, build
from .test_matching import pair

STEPS = [EagerStep, RaggedStep]
Batches = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Pretended(Ranks):
    """One of several whose partners are not there."""

    tokens: int = 0
    """Of the step, over all processes."""

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """What this process has is looked at."""

    def totals(self, values: Sequence[float]) -> list[float]:
        """All that is summed here is tokens."""
        return [float(self.tokens)]


def gradients(
    make: type[EagerStep], model: Any, batches: Batches, *, world: int, teacher: Any = None
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one step, added up over the processes."""
    loss, found = 0.0, dict[str, torch.Tensor]()
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    for rank in range(world):
        mine = copy.deepcopy(model)
        step = make(
            mine,
            torch.optim.SGD(mine.parameters(), lr=0.0),  # gradients stay to be looked at
            max_grad_norm=None,
            ranks=Pretended(rank, world, tokens=tokens),
        )
        if teacher is None:
            loss += float(step(step.prepare(batches)))
        else:
            with matching(step, teacher, 2.0):
                loss += float(step(step.prepare(batches)))
        parts = {name: p.grad for name, p in mine.named_parameters() if p.grad is not None}
        assert not found or parts.keys() == found.keys()  # else they could not be added
        found = {name: part + found.get(name, 0.0) for name, part in parts.items()}
    return loss, found


def same(make: type[EagerStep], model: Any, batches: Batches, world: int, **options: Any) -> None:
    loss, whole = gradients(make, model, batches, world=1, **options)
    their_loss, theirs = gradients(make, model, batches, world=world, **options)
    assert their_loss == pytest.approx(loss, rel=1e-5)
    reached = {name: gradient for name, gradient in whole.items() if gradient.any() or name in theirs}
    assert reached.keys() == theirs.keys()
    for name, gradient in reached.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("make", STEPS)
@pytest.mark.parametrize("kind", ["classification", "qa", "mlm"])
@pytest.mark.parametrize("world", [2, 3])
def test_gradients_add_up_to_those_of_one_process(make: type[EagerStep], kind: str, world: int) -> None:
    """Unequal micro-batches, rows that do not divide by the processes, and, behind them, fewer rows than processes."""
    model = build("bert", kind, cut=True)
    batches = [batch_of([9, 4, 7, 12, 5], kind, 1), batch_of([3, 8, 8], kind, 2)]
    same(make, model, batches, world)
    same(make, model, [batch_of([6], kind, 3)], world)


@pytest.mark.parametrize("make", STEPS)
def test_a_process_without_labels_adds_nothing(make: type[EagerStep]) -> None:
    """Rows 1 and 3, all that the second of two has, are questions without a place; so is a whole micro-batch."""
    batches = [batch_of([9, 4, 7, 12], "qa", 1), batch_of([5, 6], "qa", 2)]
    for batch, rows in zip(batches, (slice(1, None, 2), slice(None)), strict=True):
        for name in ("start_positions", "end_positions"):
            batch[name][rows] = -100
    same(make, build("bert", "qa", cut=False), batches, 2)
    for name in ("start_positions", "end_positions"):
        batches[0][name][:] = -100
    with pytest.raises(Refused, match="no label of this step counts"):
        gradients(make, build("bert", "qa", cut=False), batches, world=2)


@pytest.mark.parametrize("make", STEPS)
def test_matching_weighs_by_the_tokens_of_all(make: type[EagerStep]) -> None:
    """A process that has no rows counts none, though it takes a micro-batch along for its gradients."""
    student, teacher = pair()
    batches = [batch_of([9, 4, 7], "classification", 1), batch_of([3, 12, 8, 5], "classification", 2)]
    same(make, student, batches[:1], 1, teacher=teacher)
    # Each part is relative to its own tokens' mean square, as micro-batches are, so that only loss and weights are equal.
    loss, _ = gradients(make, student, batches, world=1, teacher=teacher)
    their_loss, _ = gradients(make, student, batches, world=2, teacher=teacher)
    assert their_loss == pytest.approx(loss, rel=1e-5)
    shares = list[float]()
    for rank in range(3):
        step = make(student, torch.optim.SGD(student.parameters()), ranks=Pretended(rank, 3, tokens=3 + 12))
        step.aim = lambda batch: torch.zeros(())
        prepared = step.prepare([batch_of([3, 12], "classification", 3)])
        shares += step._by_tokens(list(zip(prepared, step.shares(prepared), strict=True)))
    assert shares == pytest.approx([3 / 15, 12 / 15, 0.0])


def test_the_fast_step_of_several_processes_is_packed_and_keeps_no_rows_apart() -> None:
    model = build("bert", "classification", cut=True)
    optimizer = torch.optim.AdamW(model.parameters())
    step = build_step("fast", model, optimizer, ranks=Pretended(0, 2))
    assert isinstance(step, RaggedStep)
    assert step.table is None
    alone = build_step("fast", model, optimizer)
    assert isinstance(alone, RaggedStep)
    assert alone.table is not None


@pytest.mark.parametrize("engine", ["eager", "fast"])
def test_rows_are_counted_once_where_all_are_given_the_same(engine: Any) -> None:
    """A rate of rows is that of the log where it has the whole step, and as many times as large where it has a part."""
    model = build("bert", "mlm", cut=False)
    optimizer = torch.optim.AdamW(model.parameters())
    found = [
        build_step(engine, model, optimizer, masked=masked, ranks=Pretended(0, 2)).feeds for masked in (False, True)
    ]
    assert found == [1, 2]
