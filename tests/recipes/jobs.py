"""Jobs of one and of two processes (gloo, CPU) of `earlybert COMMAND ...`; see `ranks_worker`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
WORKER = "tests.recipes.ranks_worker"


def environment(**changes: object) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in changes.items()}}


def alone(notes: Path, words: list[Any]) -> None:
    """Without a launcher."""
    notes.mkdir()
    command = [sys.executable, "-m", WORKER, notes, *words]
    subprocess.run([str(word) for word in command], check=True, cwd=ROOT, env=environment(), capture_output=True)


def launched(notes: Path, words: list[Any]) -> None:
    """As a person launches it."""
    notes.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", WORKER, notes, *words]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def pair(notes: Path, words: list[Any]) -> list[subprocess.Popen[str]]:
    """Two processes without a launcher, so that what each says when the other dies is its own."""
    notes.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(word) for word in (sys.executable, "-m", WORKER, notes, *words)]
    job = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(RANK=rank, LOCAL_RANK=rank, **job),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def finished(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    found = [(process.communicate(timeout=180)[1], process.returncode) for process in processes]
    return [(code, said) for said, code in found]


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
        os.kill(processes[victim].pid, signal.SIGKILL)
        ends = finished(processes)
        assert ends[victim][0] == -signal.SIGKILL
        code, said = ends[1 - victim]
        assert code == 2, said
        assert "another process of the job has ended" in said
        assert "--resume" in said
    assert [code for code, _ in finished(pair(notes, goes_on))] == [0, 0]
