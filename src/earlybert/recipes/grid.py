"""A grid of runs: each cell is an ordinary run folder, done once, resumable, several at once where there is room."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..anatomy import Refused
from ..config import BadSetting
from ..ticket import CutMismatch
from ..ticket.files import write_atomically
from ..train import Diverged
from . import finetune
from .progress import console, say
from .run import Run

FAILED = "failed.json"
"""In the folder of a cell that failed: why. It is tried again when the grid is run again."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    name: str
    """Path of its run folder below the grid's, unique."""
    settings: Mapping[str, Any]
    """Of `Finetune`."""
    needs: str | None = None
    """Name of the cell whose run goes into `like`; done first."""
    keep_model: bool = True
    """Whether the trained weights stay on disk; scores, costs and predictions do in any case."""


@dataclass(frozen=True)
class Outcome:
    """What became of a cell."""

    metrics: dict[str, Any] | None
    failure: str | None = None
    """One sentence."""


def run_grid(cells: Sequence[Cell], folder: Path, *, jobs: int = 1) -> dict[str, Outcome]:
    """Run every cell that is not done yet; a cell that fails does not stop the others.

    Args:
        cells: Those that others need are among them.
        folder: Of the grid; a cell's run is in `folder / cell.name`.
        jobs: Cells at once, each in a process of its own. With 1 all run in this process.

    Returns:
        The outcome of each cell, by name, in the order given.

    Raises:
        KeyboardInterrupt: As it was asked for; cells in hand have written a checkpoint.
    """
    outcomes = {cell.name: found for cell in cells if (found := outcome(folder, cell)) is not None}
    if outcomes:
        say(f"{len(outcomes)} of {len(cells)} runs are done already")
    waiting = [cell for cell in cells if cell.name not in outcomes]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(highlight=False)) as bar:  # the runs' own console is silent
        task = bar.add_task("runs", total=len(cells), completed=len(outcomes))
        work = _one_by_one if jobs == 1 else _side_by_side
        for cell, found in work(waiting, folder, outcomes, jobs, lambda name: bar.update(task, description=name)):
            outcomes[cell.name] = found
            bar.advance(task)
            bar.console.print(_line(cell, found), soft_wrap=True, markup=False)
    return {cell.name: outcomes[cell.name] for cell in cells}


def outcome(folder: Path, cell: Cell) -> Outcome | None:
    """Of a cell that is done; None when it is still to be run, a failed one included.

    Raises:
        Refused: The run that is there was made with other settings.
    """
    path = folder / cell.name
    if not (path / "metrics.json").exists():
        return None
    finetune.refuse_changes(Run.open(path), cell.settings)
    return Outcome(Run.open(path).read_metrics())


def run_cell(folder: Path, cell: Cell) -> Outcome:
    """Run one cell, or go on with it. What is wrong with it becomes its outcome, and `failed.json`."""
    path = folder / cell.name
    settings = dict(cell.settings)
    if cell.needs is not None:
        settings["like"] = str(folder / cell.needs)
    quiet, console.quiet = console.quiet, True
    (path / FAILED).unlink(missing_ok=True)
    try:
        start = finetune.start(settings, output=str(path), resume=(path / "config.yaml").exists(), reuse=True)
        finetune.finetune(start, compare=False, page=False)  # earlybert report makes one of any of them
        if not cell.keep_model:
            for weights in (path / "model").glob("*.safetensors"):
                weights.unlink()
        return Outcome(Run.open(path).read_metrics())
    except (Refused, BadSetting, Diverged, CutMismatch) as error:
        return _failed(path, str(error))
    except torch.OutOfMemoryError:
        return _failed(path, "the device ran out of memory; run fewer jobs at once, or lower batch_size.")
    finally:
        console.quiet = quiet


def _failed(path: Path, sentence: str) -> Outcome:
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / FAILED, json.dumps({"failure": sentence}, indent=2).encode() + b"\n")
    return Outcome(None, sentence)


Done = Iterator[tuple[Cell, Outcome]]


def _one_by_one(
    waiting: Sequence[Cell], folder: Path, outcomes: Mapping[str, Outcome], _: int, show: Callable[[str], None]
) -> Done:
    left = list(waiting)
    while left:
        cell = _next(left, outcomes)
        left.remove(cell)
        show(cell.name)
        yield cell, _without(cell, outcomes) or run_cell(folder, cell)


def _side_by_side(
    waiting: Sequence[Cell], folder: Path, outcomes: Mapping[str, Outcome], jobs: int, show: Callable[[str], None]
) -> Done:
    left = list(waiting)
    threads = max(1, (os.cpu_count() or jobs) // jobs)
    running: dict[Future[Outcome], Cell] = {}
    pool = _pool(jobs, threads)
    try:
        while left or running:
            ready = [cell for cell in left if cell.needs is None or cell.needs in outcomes]
            for cell in ready[: 2 * jobs - len(running)]:  # a few in reserve, so that no process waits
                left.remove(cell)
                lost = _without(cell, outcomes)
                if lost is not None:
                    yield cell, lost
                else:
                    running[pool.submit(run_cell, folder, cell)] = cell
            show(", ".join(cell.name for cell in list(running.values())[:jobs]))
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                cell = running.pop(future)
                try:
                    yield cell, future.result()
                except BrokenProcessPool:
                    # One process was killed and took the pool along: its neighbours go on from their checkpoints.
                    yield cell, _failed(folder / cell.name, "a process of the grid was killed (out of memory?).")
                    pool.shutdown(wait=False, cancel_futures=True)
                    left = [*running.values(), *left]
                    running.clear()
                    pool = _pool(jobs, threads)
                    break
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(jobs: int, threads: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_worker, initargs=(threads,))


def _worker(threads: int) -> None:
    torch.set_num_threads(threads)


def _next(left: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> Cell:
    return next(cell for cell in left if cell.needs is None or cell.needs in outcomes)


def _without(cell: Cell, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """A failure, if the run that this one takes something from has failed."""
    if cell.needs is not None and outcomes[cell.needs].failure is not None:
        return Outcome(None, f"needs {cell.needs}, which failed.")
    return None


def _line(cell: Cell, found: Outcome) -> str:
    if found.metrics is None:
        return f"{cell.name}: failed: {found.failure}"
    headline = found.metrics["headline"]
    return (
        f"{cell.name}: {headline} {found.metrics['score'][headline]:.4f}, {found.metrics['seconds']:.0f} s of training"
    )
