"""A stage while it runs: loss, speed, mask distance and time left, as a bar, a line or a JSON object."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from ..train.loop import Done
from ..train.steplog import LAST, StepLog
from .display import display

LINES_APART = 10.0
"""Seconds between two lines of a stage where there are no bars; its last line comes in any case."""
WINDOW = 20
"""Steps over which a bar's speed is taken."""

Distances = Sequence[tuple[int, float, float]]
"""`(step, heads, neurons)` of every check of the mask so far, as `ticket.settled.Watch` holds them."""
COLUMNS = (TextColumn("{task.description:<14}"), BarColumn(bar_width=16), MofNCompleteColumn())
NUMBERS = TextColumn("{task.fields[numbers]}")


class Live:
    """Observer of a stage, and reader of its log, that shows both.

    A bar moves with every step, and its speed is that of the wall clock over the last steps. Lines and JSON objects
    come when the log is read (`log_every`), and their speed is over step times alone, as in `metrics.json`.

    Args:
        title: Of the bar.
        stage: Name in the log.
        first: Optimizer steps done before.
        steps: The last one; unknown when it is `LAST`.
        log: Of the stage.
        distances: Grows while a search runs.
        left: Seconds left of a run with a budget of time; by the steps when None.
        feeds: Processes that take the same step, each on as many rows of its own.
    """

    def __init__(
        self,
        title: str,
        stage: str,
        first: int,
        steps: int,
        log: StepLog,
        *,
        distances: Distances = (),
        left: Callable[[], float] | None = None,
        feeds: int = 1,
    ) -> None:
        self._title, self._stage, self._first, self._distances = title, stage, first, distances
        self._steps = steps if steps < LAST else None
        self._log, self._left, self._feeds = log, left, feeds
        self._done, self._loss = first, None
        self._began = self._said = time.monotonic()
        self._recent: list[tuple[float, int, int]] = [(self._began, 0, 0)]  # when, rows and tokens so far
        self._open = ExitStack()
        log.readers.append(self.read)

    def __enter__(self) -> Live:
        self._bar = self._open.enter_context(display.bars(*COLUMNS, NUMBERS))
        if self._bar is not None:
            self._task = self._bar.add_task(self._title, total=self._steps, completed=self._first, numbers="")
            self._open.callback(self._leave)
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def __call__(self, done: Done) -> bool:
        """Show one step more."""
        self._done = done.step
        if self._bar is not None:
            if done.loss.device.type == "cpu":  # nothing has to be waited for
                self._loss = float(done.loss)
            now, rows, tokens = time.monotonic(), *self._recent[-1][1:]
            latest = self._log.latest
            self._recent = [*self._recent[-WINDOW:], (now, rows + latest["rows"], tokens + latest["tokens"])]
            then, rows_then, tokens_then = self._recent[0]
            took = max(1e-9, now - then)
            speeds = ((rows + latest["rows"] - rows_then) / took, (tokens + latest["tokens"] - tokens_then) / took)
            self._bar.update(self._task, completed=done.step, numbers=self._text(*speeds))
        return False

    def read(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Show what the log has just read."""
        last = lines[-1]
        self._done, self._loss = last["step"], last["loss"]
        seconds = max(1e-9, sum(line["seconds"] for line in lines))
        rows, tokens = (sum(line[name] for line in lines) / seconds for name in ("rows", "tokens"))
        distance = self._distance()
        display.emit(
            "step",
            stage=self._stage,
            title=self._title,
            step=self._done,
            steps=self._steps,
            loss=self._loss,
            lr=last["lr"],
            rows_per_second=self._feeds * rows,
            tokens_per_second=self._feeds * tokens,
            mask_distance=None if distance is None else {"heads": distance[0], "neurons": distance[1]},
            seconds_left=self._seconds_left(),
        )
        ends = self._steps is not None and self._done >= self._steps
        if display.mode == "plain" and display.talks and (ends or time.monotonic() - self._said >= LINES_APART):
            self._said = time.monotonic()
            of = f"/{self._steps:,}" if self._steps is not None else ""
            display.say(f"{self._title} {self._done:,}{of}  {self._text(rows, tokens)}")

    def _text(self, rows: float, tokens: float) -> str:
        distance, left = self._distance(), self._seconds_left()
        parts = [
            "" if self._loss is None else f"loss {self._loss:.3f}",
            f"{self._feeds * rows:,.0f} rows/s",
            f"{self._feeds * tokens:,.0f} tokens/s",
            "" if distance is None else f"mask distance {distance[0]:.3f} {distance[1]:.3f}",
            "" if left is None else f"{clock(left)} left",
        ]
        return "  ".join(filter(None, parts))

    def _distance(self) -> tuple[float, float] | None:
        return self._distances[-1][1:] if self._distances else None

    def _seconds_left(self) -> float | None:
        if self._left is not None:
            return max(0.0, self._left())
        if self._steps is None or self._done <= self._first:
            return None
        each = (time.monotonic() - self._began) / (self._done - self._first)
        return max(0, self._steps - self._done) * each

    def _leave(self) -> None:
        """A bar that is done stays, unless it is a guest under a grid's."""
        assert self._bar is not None
        self._bar.refresh()  # a stage that was shorter than a refresh is seen, too
        if len(self._bar.tasks) > 1:
            self._bar.remove_task(self._task)


def clock(seconds: float) -> str:
    """Seconds as a clock shows them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
