"""Wall-clock time as the measure of a run, instead of steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median

import torch

from .loop import Done
from .ranks import ALONE, Ranks
from .schedule import fallen

MEASURED = 10
"""Steps whose times say how long the others will take."""


class Stopwatch:
    """Seconds that a run has trained, over all its interruptions.

    Args:
        device: Is waited for before a pause, so that work on its way counts.
        elapsed: Seconds before.
    """

    def __init__(self, device: torch.device, elapsed: float = 0.0) -> None:
        self._device = device
        self.set(elapsed)

    @property
    def elapsed(self) -> float:
        """Seconds so far, data loading and checkpoints included, pauses not."""
        return time.monotonic() - self._began

    def set(self, elapsed: float) -> None:
        """Go on from here."""
        self._began = time.monotonic() - elapsed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, no time passes: how often a run is scored does not change what it learns."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        before = self.elapsed
        try:
            yield
        finally:
            self.set(before)


class Budget:
    """A schedule and an end by time.

    Args:
        watch: Of the run.
        begin: Seconds on the watch when the schedule begins.
        end: Seconds on the watch when it has fallen to zero, and the last step is taken.
        warmup: Share of that time over which the rate rises.
        ranks: The processes of the job; the first one's watch counts.
    """

    def __init__(self, watch: Stopwatch, begin: float, end: float, warmup: float, ranks: Ranks = ALONE) -> None:
        self._watch, self._begin, self._end, self._warmup = watch, begin, end, warmup
        self._ranks = ranks

    def factor(self, _: int) -> float:
        """A schedule: what the learning rate is multiplied by now."""
        return fallen(max(0.0, self._now() - self._begin) / (self._end - self._begin), self._warmup)

    def over(self, _: Done) -> bool:
        """Observer that ends the loop when the time has gone."""
        return self._now() >= self._end

    def _now(self) -> float:
        return self._ranks.said(self._watch.elapsed)


class Pace:
    """Observer that ends a loop after a few steps, when the others would not fit into the time.

    Args:
        watch: Of the run, just before the first step.
        steps: The number of the last step.
        end: Seconds on the watch when the time has gone.
        ranks: The processes of the job; the first one's watch counts.
    """

    def __init__(self, watch: Stopwatch, steps: int, end: float, ranks: Ranks = ALONE) -> None:
        self._watch, self._steps, self._end, self._ranks = watch, steps, end, ranks
        self._times = [watch.elapsed]
        self.needed = watch.elapsed
        """Seconds on the watch behind the last step, as far as can be said by now."""

    def __call__(self, done: Done) -> bool:
        """Time a step; true when it is the last that is timed, and the others take too long."""
        now = self._watch.elapsed
        if timed := len(self._times) <= MEASURED:
            self._times.append(now)
        each = median(after - before for before, after in pairwise(self._times))  # the first may hold a compilation
        self.needed = now + (self._steps - done.step) * each
        return timed and len(self._times) > MEASURED and self._ranks.said(self.needed > self._end)
