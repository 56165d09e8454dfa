"""Time as the measure of a run: what counts and what does not, on a clock that is moved by hand."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
import torch

from earlybert.train.budget import MEASURED, Budget, Pace, Stopwatch
from earlybert.train.loop import Done


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    return made


def test_a_pause_does_not_count_also_one_that_an_error_ends(clock: Clock) -> None:
    watch = Stopwatch(torch.device("cpu"), elapsed=7.0)
    clock.now += 2
    with watch.paused():
        clock.now += 50
    assert watch.elapsed == 9
    with suppress(KeyboardInterrupt), watch.paused():
        clock.now += 50
        raise KeyboardInterrupt
    clock.now += 1
    assert watch.elapsed == 10


def test_a_budget_that_is_scored_in_between_ends_no_sooner(clock: Clock) -> None:
    """From second 10 to 20; halfway the rate is the root of a half, as of NVIDIA's schedule."""
    watch = Stopwatch(torch.device("cpu"), elapsed=10.0)
    budget = Budget(watch, begin=10.0, end=20.0, warmup=0.2)
    clock.now += 5
    with watch.paused():
        clock.now += 50
    assert budget.factor(0) == pytest.approx(0.5**0.5)
    clock.now += 4
    done = Done(step=1, loss=torch.tensor(0.0), micro_batches=(), factor=1.0)
    assert not budget.over(done)
    clock.now += 1
    assert budget.over(done)


@pytest.mark.parametrize(("end", "ends"), [(129.0, True), (131.0, False)])
def test_what_would_not_fit_into_the_time_ends_after_a_few_steps(clock: Clock, end: float, ends: bool) -> None:
    """100 steps of a second behind a first of 31: the one that compiles is no measure of the others."""
    pace = Pace(Stopwatch(torch.device("cpu")), 100, end)
    asked = []
    for step in range(1, 21):
        clock.now += 31 if step == 1 else 1
        asked.append(pace(Done(step=step, loss=torch.tensor(0.0), micro_batches=(), factor=1.0)))
        assert step < 3 or pace.needed == 130
    assert [step for step, said in enumerate(asked, 1) if said] == ([MEASURED] if ends else [])
