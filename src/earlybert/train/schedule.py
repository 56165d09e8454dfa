"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[[int], float]
"""Optimizer steps done so far to a factor on the learning rate."""


def linear(steps: int, warmup: int = 0) -> Schedule:
    """Rise over `warmup` steps, then fall in a straight line to zero after `steps` (Devlin et al. 2018)."""

    def factor(done: int) -> float:
        if done < warmup:
            return (done + 1) / (warmup + 1)
        return max(0.0, (steps - done) / max(1, steps - warmup))

    return factor


def constant(_: int) -> float:
    """No change."""
    return 1.0


def rewarmed(schedule: Schedule, after: int, steps: int) -> Schedule:
    """The same schedule, but rising to it again over `steps` steps after step `after` (where a model was cut)."""
    if steps == 0:
        return schedule
    return lambda done: schedule(done) * min(1.0, max(0, done - after + 1) / (steps + 1))
