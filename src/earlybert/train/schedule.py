"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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


def polynomial(steps: int, warmup: float, degree: float = 0.5) -> Schedule:
    """Rise in a straight line, then `(1 - progress) ** degree`, as NVIDIA's `PolyWarmUpScheduler` for LAMB.

    Progress counts the step being taken, from the first step of all: behind the warm-up the rate drops at once to
    `(1 - warmup) ** degree`, and the last step has rate 0, as there.

    Args:
        steps: After which the rate is zero.
        warmup: Share of them over which it rises.
        degree: Of the fall.
    """
    return lambda done: fallen((done + 1) / steps, warmup, degree)


def fallen(progress: float, warmup: float, degree: float = 0.5) -> float:
    """Where `polynomial` stands when this share of its steps, or of its time, has gone."""
    progress = min(1.0, max(0.0, progress))
    return progress / warmup if progress < warmup else (1.0 - progress) ** degree


@dataclass(frozen=True)
class Phase:
    """A part of pre-training at one sequence length, with a schedule of its own."""

    steps: int
    """Optimizer steps."""
    length: int
    """Tokens of a row."""
    batch: int
    """Rows per optimizer step, over all ranks."""
    lr: float
    """Highest learning rate."""
    warmup: float
    """Share of the steps over which it rises."""

    @property
    def schedule(self) -> Schedule:
        """Factor on `lr` for steps done within the phase."""
        return polynomial(self.steps, self.warmup)


NVIDIA = (
    Phase(7_038, length=128, batch=65_536, lr=6e-3, warmup=0.2843),
    Phase(1_563, length=512, batch=32_768, lr=4e-3, warmup=0.128),
)
"""Phases of BERT with LAMB as NVIDIA trains it, whose numbers the paper uses (App. B)."""


def split(steps: int, phases: Sequence[Phase] = NVIDIA, share: float = 0.9) -> tuple[Phase, Phase]:
    """Two phases of `steps` in all, `share` of them in the first (the paper: 9/10 and 1/10)."""
    first = round(share * steps)
    return replace(phases[0], steps=first), replace(phases[1], steps=steps - first)


def shortened(phases: Sequence[Phase], share: float) -> tuple[Phase, ...]:
    """Every phase compressed to this share of its steps, warm-up in proportion (the paper's ticket: 0.8)."""
    return tuple(replace(phase, steps=round(share * phase.steps)) for phase in phases)


def at(phases: Sequence[Phase], done: int) -> tuple[int, int]:
    """The number of the phase that the next step after `done` is in, and steps done of it; behind the last, 0."""
    for number, phase in enumerate(phases):
        if done < phase.steps:
            return number, done
        done -= phase.steps
    return len(phases), 0
