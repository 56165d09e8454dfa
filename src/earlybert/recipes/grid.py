"""A grid of runs: each cell is an ordinary run folder, done once, resumable, several at once where there is room."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import cycle, islice
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from ..anatomy import Refused
from ..config.checks import BadSetting
from ..config.finetune import LogMode
from ..ticket import CutMismatch
from ..ticket.files import write_atomically
from ..ticket.memory import out_of_memory
from ..train import Diverged
from ..train.heap import give_back
from ..train.interrupt import Terminated
from .display import display, say
from .kinds import KINDS, RESULTS, Kind
from .machine import refuse_launcher
from .progress import COLUMNS, NUMBERS, clock

TRACEBACK = "failed.log"
FAILED = "failed.json"
"""In the folder of a cell that failed: why. It is tried again when the grid is run again."""
NEEDED = ".needs.json"
"""In the folder of a cell that takes something from another: the checksum of what that one came to."""

GRID = "a comparison, whose --jobs spreads its runs,"
"""In a refusal."""
CORES_A_RUN = 4
"""A run on the CPU gains little from more."""
PATIENCE = 10.0
"""Seconds that runs have to end by themselves after a Ctrl-C."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
SPARE, CONTEXT_BYTES = 0.8, 2**30
"""Share of the free GPU memory that is planned with, and what a process takes there before it begins."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    name: str
    """Path of its run folder below the grid's, unique."""
    settings: Mapping[str, Any]
    """Of `Finetune`, or `Pretrain`."""
    kind: Kind = "finetune"
    """What is run."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Settings that other cells fill, by name of the setting: `like` takes their run, `model` their model. Those are
    done first."""
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
        jobs: Cells at once, each in a process of its own, spread evenly over the GPUs that there are. With 1 all run
            in this process; with 0 as many as there is room for, judged by the first one.

    Returns:
        The outcome of each cell, by name, in the order given.

    Raises:
        Refused: This is one of several processes of a launcher.
        KeyboardInterrupt: As it was asked for; cells in hand have written a checkpoint.
    """
    refuse_launcher(GRID)
    for cell in cells:
        if stale(folder, cell):
            shutil.rmtree(_place(folder, cell.name))
            _place(folder, cell.name).mkdir()
    outcomes = {cell.name: found for cell in cells if (found := outcome(folder, cell)) is not None}
    if outcomes:
        say(f"{len(outcomes)} of {len(cells)} runs are done already")
    waiting = [cell for cell in cells if cell.name not in outcomes]
    with display.bars(*COLUMNS, NUMBERS) as bars:
        shown = Shown(bars, len(cells), len(outcomes))

        def run_all(cells: Sequence[Cell], at_once: int) -> None:
            work = _one_by_one if at_once == 1 else _side_by_side
            for cell, found in work(cells, folder, outcomes, at_once, shown.now):
                outcomes[cell.name] = found
                shown.finished(cell, found)

        if jobs == 0 and waiting:
            first = _next(waiting, outcomes)
            run_all([first], 1)
            waiting.remove(first)
            jobs = room(outcomes[first.name])
        run_all(waiting, max(1, jobs))
    return {cell.name: outcomes[cell.name] for cell in cells}


class Shown:
    """What a grid shows: which runs are at work, how many are done, and the time left by the mean of those."""

    def __init__(self, bars: Progress | None, total: int, done: int) -> None:
        self._bars, self._total, self._done, self._first = bars, total, done, done
        self._began, self._names = time.monotonic(), ""
        self._task = bars.add_task("runs", total=total, completed=done, numbers="") if bars is not None else None

    def now(self, names: str) -> None:
        """These runs are at work."""
        self._names = names
        self._update()

    def finished(self, cell: Cell, found: Outcome) -> None:
        """A run has ended."""
        self._done += 1
        self._update()
        about = {key: (found.metrics or {}).get(key) for key in ("score", "seconds", "flops")}
        left = self._seconds_left()
        display.emit(
            "run", name=cell.name, done=self._done, runs=self._total, seconds_left=left, failure=found.failure, **about
        )
        if display.mode != "json":
            say(_line(cell, found))

    def _update(self) -> None:
        if self._bars is not None and self._task is not None:
            left = self._seconds_left()
            numbers = self._names + ("" if left is None else f"  {clock(left)} left")
            self._bars.update(self._task, completed=self._done, numbers=numbers)

    def _seconds_left(self) -> float | None:
        taken = self._done - self._first
        return (self._total - self._done) * (time.monotonic() - self._began) / taken if taken else None


def room(first: Outcome) -> int:
    """How many runs like this one fit beside each other: by free memory and cores on GPUs, by cores elsewhere."""
    cores = os.cpu_count() or 1
    peak = None if first.metrics is None else first.metrics.get("peak_memory_bytes")
    if peak is None:
        return max(1, cores // CORES_A_RUN)
    free, _ = torch.cuda.mem_get_info()
    return max(1, min(cores // 2, len(gpus()) * max(1, int(SPARE * free / (peak + CONTEXT_BYTES)))))


def gpus() -> list[str]:
    """Names that `CUDA_VISIBLE_DEVICES` has for the GPUs this process may use: numbers, or what was said there."""
    numbers = [str(number) for number in range(torch.cuda.device_count())]
    return [name.strip() for name in os.environ.get(VISIBLE, ",".join(numbers)).split(",")][: len(numbers)]


def outcome(folder: Path, cell: Cell) -> Outcome | None:
    """Of a cell that is done; None when it is still to be run, a failed one included.

    Raises:
        Refused: The run that is there was made with other settings.
    """
    return (
        None
        if (found := KINDS[cell.kind].finished(folder / cell.name, _settings(folder, cell))) is None
        else Outcome(found)
    )


def stale(folder: Path, cell: Cell) -> bool:
    """Whether a finished run took something from a run that has been done again since."""
    if _digest(folder / cell.name) is None:
        return False
    # Not by the dates: a clock may go backwards.
    try:
        before = json.loads((folder / cell.name / NEEDED).read_bytes())
    except (OSError, ValueError):
        before = None
    return bool(cell.needs) and before != _digests(folder, cell)


def _digests(folder: Path, cell: Cell) -> dict[str, str | None]:
    """SHA-256 of what the runs came to that this one takes something from, by setting; None where one is gone."""
    return {setting: _digest(folder / name) for setting, name in cell.needs.items()}


def _digest(path: Path) -> str | None:
    for name in RESULTS:
        if (path / name).exists():
            return hashlib.sha256((path / name).read_bytes()).hexdigest()
    return None


def _settings(folder: Path, cell: Cell) -> dict[str, Any]:
    taken = {setting: _place(folder, name) for setting, name in cell.needs.items()}
    return {**cell.settings, **{name: str(path / "model" if name == "model" else path) for name, path in taken.items()}}


def _place(folder: Path, name: str) -> Path:
    """Where a run is: a link leads to a run that grids share, and to them all it is called the same."""
    path = folder / name
    return path.resolve() if path.is_symlink() else path


def run_cell(folder: Path, cell: Cell) -> Outcome:
    """Run one cell, or go on with it. What is wrong with it becomes its outcome, and `failed.json`."""
    found = _tried(folder, cell)
    give_back()  # or the process would keep the most that any of its runs had
    return found


def _tried(folder: Path, cell: Cell) -> Outcome:
    path = folder / cell.name
    settings = _settings(folder, cell)
    for told in (FAILED, TRACEBACK):
        (path / told).unlink(missing_ok=True)
    try:
        with display.muted():
            return _run_cell(folder, cell, settings)
    except (Refused, BadSetting, Diverged, CutMismatch) as error:
        return _failed(path, str(error))
    except Exception as error:  # one broken run must not end a night of others
        if out_of_memory(error):
            return _failed(path, "the memory ran out; run fewer jobs at once, or lower batch_size.")
        write_atomically(path / TRACEBACK, traceback.format_exc().encode())
        said = str(error).strip().splitlines()
        return _failed(path, f"{type(error).__name__}: {said[0][:200] if said else 'no message'} (see {TRACEBACK}).")


def _run_cell(folder: Path, cell: Cell, settings: dict[str, Any]) -> Outcome:
    path = folder / cell.name
    if cell.needs and not (path / NEEDED).exists():
        write_atomically(path / NEEDED, json.dumps(_digests(folder, cell)).encode() + b"\n")
    KINDS[cell.kind].run(path, settings)
    if not cell.keep_model:
        for weights in (path / "model").glob("*.safetensors"):
            weights.unlink()
    return Outcome(KINDS[cell.kind].finished(path, settings))


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
            ready = [cell for cell in left if all(name in outcomes for name in cell.needs.values())]
            for cell in ready[: jobs - len(running)]:  # none in reserve: it would start after a Ctrl-C
                left.remove(cell)
                lost = _without(cell, outcomes)
                if lost is not None:
                    yield cell, lost
                else:
                    running[pool.submit(run_cell, folder, cell)] = cell
            if not running:
                continue
            show(", ".join(cell.name for cell in list(running.values())[:jobs]))
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                cell = running.pop(future)
                try:
                    yield cell, future.result()
                except BrokenProcessPool:
                    # One process was killed and took the pool along: its neighbours go on from their checkpoints.
                    yield cell, _failed(folder / cell.name, "a process of the grid was killed (out of memory?).")
                    _end(pool)
                    left = [*running.values(), *left]
                    running.clear()
                    pool = _pool(jobs, threads)
                    break
    except KeyboardInterrupt as stop:
        # A Ctrl-C has reached them, too, and a second signal would end them without a checkpoint; a SIGINT to this
        # process alone has not.
        _stop(pool, patience=0.0 if isinstance(stop, Terminated) else PATIENCE)
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(jobs: int, threads: int) -> ProcessPoolExecutor:
    """Processes, each with a GPU of its own as far as they go round; without GPUs none is named."""
    context, names = get_context("spawn"), gpus()
    places = context.SimpleQueue()
    for name in islice(cycle(names), jobs):
        places.put(name)
    given = (threads, display.mode, places if names else None)
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_worker, initargs=given)


def _stop(pool: ProcessPoolExecutor, *, patience: float) -> None:
    """Ask the runs of a pool for a checkpoint and their end, those that are still at work after some seconds."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    until = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.terminate()  # which a run takes for "write a checkpoint and stop"


def _end(pool: ProcessPoolExecutor) -> None:
    """Kill what is left of a broken pool before another one works on the same folders.

    Its own way of ending them is a signal that a run takes for "write a checkpoint and stop", and then goes on.
    """
    processes = list((pool._processes or {}).values())
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    pool.shutdown(wait=False, cancel_futures=True)


def _worker(threads: int, mode: LogMode, places: SimpleQueue[str] | None) -> None:
    display.mode = mode
    if places is not None:  # before anything asks for a device, which would settle which there are
        os.environ[VISIBLE] = places.get()
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """A worker whose grid was killed must not go on writing where the next one will."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _next(left: Sequence[Cell], outcomes: Mapping[str, Outcome]) -> Cell:
    return next(cell for cell in left if all(name in outcomes for name in cell.needs.values()))


def _without(cell: Cell, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """A failure, if a run that this one takes something from has failed."""
    failed = next((name for name in cell.needs.values() if outcomes[name].failure is not None), None)
    return None if failed is None else Outcome(None, f"needs {failed}, which failed.")


def _line(cell: Cell, found: Outcome) -> str:
    if found.metrics is None:
        return f"{cell.name}: failed: {found.failure}"
    return f"{cell.name}: {KINDS[cell.kind].line(found.metrics)}, {found.metrics['seconds']:.0f} s of training"
