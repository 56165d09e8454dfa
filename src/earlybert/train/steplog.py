"""One line a step: loss, learning rate, seconds, FLOPs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..anatomy import Refused
from ..ticket.files import disk_errors, write_atomically
from .clock import Clock
from .loop import Done, LossWatch
from .step import EagerStep


class Counts(Protocol):
    """What says how many FLOPs a step took: a `Cost`, or something whose steps differ."""

    def step(self, shapes: Sequence[tuple[int, int]]) -> int:
        """FLOPs of the step just done, on micro-batches of `(rows, padded length)`."""
        ...


SCORING = "scoring"
"""Stage of batches that scores are taken from without an optimizer step; one line for all of them."""
STAGES = ("search", SCORING, "draw", "train")
"""In the order they run."""
NO_STEPS = (SCORING, "draw")
"""Those of them that take no optimizer step."""
LAST = 2**62
"""A step behind every other."""


@dataclass(frozen=True)
class Totals:
    """Sums over the steps of a stage."""

    steps: int
    seconds: float
    """Training time: whole steps, data loading left out (Sec. 4.1)."""
    flops: int
    """Forward and backward, from live shapes."""
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """With the mean per step, the paper's figure."""
        mean = self.seconds / self.steps if self.steps else 0.0
        return {**vars(self), "mean_step_seconds": mean}


class StepLog:
    """Observer that writes `steps.jsonl`, reading losses and times only every so often.

    Args:
        path: The file; lines are appended.
        stage: One of `STAGES`.
        step: The step that is logged; it says what it computes on.
        cost: Counts the FLOPs of a step of the model that is trained.
        clock: That times it.
        first: Optimizer steps done before.
        lr: Base learning rate.
        every: Steps between readings, which wait for the device.

    Attributes:
        readers: Called with the lines of every reading, complete.
        latest: The last step's line, without what has to be read.
    """

    def __init__(
        self, path: Path, stage: str, *, step: EagerStep, cost: Counts, clock: Clock, first: int, lr: float, every: int
    ) -> None:
        self.path = path
        self.readers: list[Callable[[Sequence[Mapping[str, Any]]], None]] = []
        self.latest: Mapping[str, Any] = {}
        self._stage = stage
        self._shapes = step.shapes
        self._cost = cost
        self._clock = clock
        self._losses = LossWatch(first, every=LAST)
        self._lr = lr
        self._every = every
        self._waiting: list[dict[str, Any]] = []

    def __call__(self, done: Done) -> bool:
        """Note one step."""
        shapes = self._shapes(done.micro_batches)
        self._losses(done)
        line: dict[str, Any] = {
            "stage": self._stage,
            "step": done.step,
            "lr": self._lr * done.factor,
            "rows": sum(len(batch["input_ids"]) for batch in done.micro_batches),
            "tokens": sum(rows * length for rows, length in shapes),
            "flops": self._cost.step(shapes),
        }
        self.latest = line
        self._waiting.append(line)
        if len(self._waiting) >= self._every:
            self.flush()
        return False

    def flush(self) -> None:
        """Write what waits.

        Raises:
            Diverged: A loss is not finite. The steps before it are written.
        """
        seconds = self._clock.read()
        lines, self._waiting = self._waiting, []
        if not lines:
            return
        losses = self._losses.read()
        for line, loss, took in zip(lines, losses, seconds, strict=False):
            line.update(loss=loss, seconds=took)
        append(self.path, lines[: len(losses)])
        if losses:
            for read in self.readers:
                read(lines[: len(losses)])
        self._losses.refuse_divergence()


def add_line(path: Path, stage: str, step: int, seconds: float, flops: int = 0) -> None:
    """Log work that is not an optimizer step (scoring, drawing, cutting), so that it counts as training time."""
    append(path, [{"stage": stage, "step": step, "rows": 0, "tokens": 0, "flops": flops, "seconds": seconds}])


def append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add JSON lines to a file.

    Raises:
        Refused: The disk is full.
    """
    with disk_errors(path), open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def read_steps(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a step log; a last line that was not finished is left out.

    Raises:
        Refused: Another line is not a JSON object.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        torn = False
        for number, line in enumerate(file, start=1):
            try:
                entry = None if torn else json.loads(line)
            except (ValueError, RecursionError):
                torn = True
                continue
            if not isinstance(entry, dict):
                raise Refused(f"step log {path} is broken in line {number - torn}; start a new run.")
            yield entry


def truncate(path: Path, stage: str, step: int) -> None:
    """Forget what was logged after `step` of `stage`: a resumed run takes those steps again."""
    place = (STAGES.index(stage), step)
    with _understood(path):
        kept = [line for line in read_steps(path) if (STAGES.index(line["stage"]), line["step"]) <= place]
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def forget(path: Path, stage: str, step: int) -> None:
    """Drop one line that will be written again, if it is there."""
    with _understood(path):
        lines = list(read_steps(path))
        kept = [line for line in lines if (line["stage"], line["step"]) != (stage, step)]
    if len(kept) < len(lines):
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def totals(path: Path) -> dict[str, Totals]:
    """Sums for each stage that has steps."""
    sums: dict[str, Totals] = {}
    with _understood(path):
        for line in read_steps(path):
            before = sums.get(line["stage"], Totals(0, 0.0, 0, 0))
            sums[line["stage"]] = Totals(
                before.steps + 1,
                before.seconds + line["seconds"],
                before.flops + line["flops"],
                before.rows + line["rows"],
            )
    return sums


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ArithmeticError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"step log {path} is broken; start a new run.") from None
