"""Progress bars for the stages of a run."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..train.loop import Done
from ..train.steplog import LAST, StepLog

console = Console(highlight=False)
"""Where everything for a person is printed."""


def say(sentence: str) -> None:
    """Print a sentence, unbroken, so that commands in it can be copied."""
    console.print(sentence, soft_wrap=True, markup=False)


class Bar:
    """Observer that shows how far a stage is, how fast, and its last loss."""

    def __init__(self, title: str, first: int, steps: int, log: StepLog) -> None:
        self._log = log
        self._rows = 0
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(
            title, total=steps if steps < LAST else None, completed=first, loss="", speed=""
        )

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def __call__(self, done: Done) -> bool:
        """Show one step more."""
        self._rows += sum(len(batch["input_ids"]) for batch in done.micro_batches)
        elapsed = self._progress.tasks[0].elapsed or 0.0
        speed = f"{self._rows / elapsed:,.0f} rows/s" if elapsed else ""
        loss = "" if self._log.last_loss is None else f"loss {self._log.last_loss:.3f}"
        self._progress.update(self._task, completed=done.step, loss=loss, speed=speed)
        return False
