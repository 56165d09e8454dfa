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
