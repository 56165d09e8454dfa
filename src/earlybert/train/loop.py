"""The training loop that drives every stage of every recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..tasks.batches import Batch
from ..ticket import Gates
from .clock import Clock
from .optimizer import set_rate
from .schedule import Schedule
from .step import EagerStep


class Diverged(RuntimeError):
    """The loss is not a finite number any more."""


@dataclass(frozen=True)
class Done:
    """What is known after an optimizer step."""

    step: int
    """Optimizer steps finished, this one included."""
    loss: Tensor
    """Task loss, fp32 scalar on the device."""
    micro_batches: Sequence[Batch]
    """What it was made from."""
    factor: float
    """What the schedule made of the learning rate."""


Observer = Callable[[Done], bool]
"""Called after every step; true asks the loop to end."""


def loop(
    step: EagerStep,
    batches: Iterable[Sequence[Batch]],
    *,
    first: int,
    steps: int,
    schedule: Schedule,
    clock: Clock,
    observers: Sequence[Observer],
) -> int:
    """Take optimizer steps until there are `steps`, the data ends, or an observer asks to stop.

    Args:
        step: Does one.
        batches: Micro-batches of each optimizer step, from step `first` on.
        first: Optimizer steps done before.
        steps: The cap, in optimizer steps, `first` included.
        schedule: Learning-rate factor for the number of steps done.
        clock: Times the steps alone.
        observers: All are called after every step, in order, also when one asks to stop.

    Returns:
        Optimizer steps done in all.
    """
    done = first
    if done >= steps:
        return done
    for micro_batches in batches:
        factor = schedule(done)
        set_rate(step.optimizer, factor)
        prepared = step.prepare(micro_batches)
        with clock:
            loss = step(prepared)
        done += 1
        event = Done(done, loss, micro_batches, factor)
        asked = [observe(event) for observe in observers]  # all of them, whoever asks to stop
        if any(asked) or done >= steps:
            break
    return done


class LossWatch:
    """Observer that keeps losses on the device and looks at them only now and then.

    Args:
        first: Optimizer steps done before.
    """

    def __init__(self, first: int = 0, every: int = 50) -> None:
        self._read = first
        self._every = every
        self._waiting: list[Tensor] = []
        self._bad: tuple[int, float] | None = None

    def __call__(self, done: Done) -> bool:
        """Hold one loss."""
        self._waiting.append(done.loss)
        if len(self._waiting) >= self._every:
            self.read()
            self.refuse_divergence()
        return False

    def read(self) -> list[float]:
        """Losses of the steps since the last reading, up to the first that is not finite. Waits for the device."""
        losses = torch.stack(self._waiting).cpu().tolist() if self._waiting else []
        self._waiting.clear()
        for place, loss in enumerate(losses):
            if not math.isfinite(loss):
                self._bad = (self._read + place + 1, loss)
                losses = losses[:place]
                break
        self._read += len(losses)
        return losses

    def refuse_divergence(self) -> None:
        """Stop if a loss that was read is not finite.

        Raises:
            Diverged: As said; the sentence says which step.
        """
        if self._bad is not None:
            step, loss = self._bad
            raise Diverged(f"the loss is {loss} at step {step}; lower the learning rate or look at the data.")


def refuse_infinite(model: nn.Module, step: int, gates: Gates | None = None) -> None:
    """Stop before weights, or coefficients of a search, that are not finite are saved.

    Raises:
        Diverged: As said.
    """
    for what, module in (("weights", model), ("coefficients", gates)):
        if module is None or all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters()):
            continue
        raise Diverged(f"the {what} are not finite after step {step}; lower the learning rate or look at the data.")
