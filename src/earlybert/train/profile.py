"""Where the time of a step goes: a few extra steps, timed in parts, that leave the model as it was."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch

from ..tasks.batches import Batch
from .step import EagerStep, unmarked
from .untouched import untouched

HOST, WHOLE = "host", "whole"
PARTS = (HOST, "forward", "backward", "optimizer", WHOLE)
"""In order. `whole` stands for the three before it where a step is one CUDA graph, which has no inside; where
micro-batches are graphs of their own, for forward and backward."""
MOST = 8
"""Micro-batches of a step that are timed; the time of more is that of these, times their number."""


class Marks:
    """Seconds between marks: by device events on CUDA, by the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def __call__(self, part: str) -> None:
        """From now on it is this part."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def read(self) -> dict[str, float]:
        """Seconds of each part up to now. Waits for the device."""
        self("")
        if self._cuda:
            self._marks[-1][1].synchronize()
        sums: dict[str, float] = {}
        for (part, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            took = begin.elapsed_time(end) / 1e3 if self._cuda else end - begin
            sums[part] = sums.get(part, 0.0) + took
        self._marks.clear()
        return sums


def profile(step: EagerStep, batches: Iterable[Sequence[Batch]], steps: int) -> dict[str, Any]:
    """Take a few steps and time their parts. For the end of a stage, after its result is safe.

    Weights, buffers, gradients, modes and the random state are put back; the optimizer and the coefficients, which
    the stage needs no more, are left behind those steps.

    Args:
        step: That of the stage.
        batches: Micro-batches of each optimizer step.
        steps: How many to time, at most; as many as there are when there are fewer.

    Returns:
        `steps`, those timed, and in `seconds` the median of each part: `host` is making the batch, packing it and
        starting its way to the device, by the host's clock; `optimizer` is the L1 term, clipping, the update, and
        with several processes the sum over them.
    """
    taken: list[tuple[Any, float, float]] = []  # prepared, seconds of the host, share of the micro-batches
    source = iter(batches)
    with untouched(step.model):
        step.model.train()
        for _ in range(steps):
            began = time.perf_counter()
            found = next(source, None)
            if found is None:
                break
            made = time.perf_counter()
            some = list(islice(found, MOST))
            prepared, share = step.prepare(some), len(some) / len(found)
            taken.append((prepared, made - began + (time.perf_counter() - made) / share, share))
        for prepared, *_ in _warm_up(step, taken):
            step(prepared)
        times = [{HOST: host, **_parts(step, prepared, share)} for prepared, host, share in taken]
    names = [part for part in PARTS if any(part in each for each in times)]
    seconds = {part: statistics.median(each.get(part, 0.0) for each in times) for part in names}
    return {"steps": len(times), "seconds": seconds}


def _warm_up(step: EagerStep, taken: list[Any]) -> list[Any]:
    """One step; where graphs are captured, every one of them twice."""
    return taken[:1] if all(step.splits(prepared) for prepared, *_ in taken) else [*taken, *taken]


def _parts(step: EagerStep, prepared: Sequence[Any], share: float) -> dict[str, float]:
    """Seconds of a step's parts, what depends on the number of micro-batches scaled up to all of them."""
    marks = Marks(step.device)
    if step.splits(prepared):
        step.mark = marks
    else:
        marks(WHOLE)
        step.mark = _outside(marks)
    try:
        step(prepared)
    finally:
        step.mark = unmarked
    return {part: took if part == "optimizer" else took / share for part, took in marks.read().items()}


def _outside(marks: Marks) -> Callable[[str], None]:
    """Listens from the first graph on that a step tells of itself: to one of several, not to one that is the step."""
    begun = False

    def mark(part: str) -> None:
        nonlocal begun
        begun = begun or part == WHOLE
        if begun:
            marks(part)

    return mark
