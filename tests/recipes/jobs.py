"""Jobs of one and of two processes (gloo, CPU) of `earlybert COMMAND ...`; see `ranks_worker`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.warm import ROOT, Finished, Process, pair_of, run

WORKER = "tests.recipes.ranks_worker"


def environment(**changes: object) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in changes.items()}}


def alone(notes: Path, words: list[Any]) -> None:
    """One process."""
    notes.mkdir()
    run(WORKER, notes, *words)


def together(notes: Path, words: list[Any]) -> None:
    """Two processes, to a good end."""
    found = finished(pair(notes, words))
    assert [each.returncode for each in found] == [0, 0], found[0].stderr[-3000:]


def launched(notes: Path, words: list[Any]) -> None:
    """The same as a person launches it."""
    notes.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", WORKER, notes, *words]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def pair(notes: Path, words: list[Any]) -> list[Process]:
    """Two processes without a launcher, so that what each says when the other dies is its own."""
    notes.mkdir(exist_ok=True)
    return pair_of(WORKER, notes, *words)


def finished(processes: list[Process]) -> list[Finished]:
    """What is left of them."""
    return [process.finish(180) for process in processes]


def wait_for(out: Path, mark: str) -> None:
    """Until this stands in the step log."""
    log, deadline = out / "steps.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and mark in log.read_text()):
        time.sleep(0.005)


def notes_of(folder: Path, rank: int) -> dict[str, Any]:
    return torch.load(folder / f"rank-{rank}.pt", weights_only=True)


def killed_and_resumed(notes: Path, words: list[Any], out: Path, kills: Sequence[tuple[int, str]]) -> None:
    """A job of two that loses a process again and again, each time is told so, and is gone on with to its end.

    Args:
        notes: As `pair`.
        words: The command and what it is begun with.
        out: The run folder.
        kills: The rank that is killed, and what stands in the step log then.
    """
    goes_on: list[Any] = [words[0], "--resume", "--output", out]
    for number, (victim, mark) in enumerate(kills):
        processes = pair(notes, goes_on if number else [*words, "--output", out])
        wait_for(out, mark)
        processes[victim].kill()
        ends = finished(processes)
        assert ends[victim].returncode == -signal.SIGKILL
        left = ends[1 - victim]
        assert left.returncode == 2, left.stderr
        assert "another process of the job has ended" in left.stderr
        assert "--resume" in left.stderr
    together(notes, goes_on)
