"""Stop fine-tuning runs at random moments, go on, and hold what comes out against a run that was left alone.

    python -m tests.faults.kills --kills 50 --output benchmarks/results/kills.json
    python -m tests.faults.kills --kills 10 --signal TERM

Every run is a process of its own, forked from one that has everything imported. A third of the moments are random in
time, a third wait for the result of a stage and a third for a file that is being written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import earlybert as eb
from earlybert.cli import main as earlybert
from earlybert.recipes import finetune as _  # noqa: F401  (so that no forked process has to)
from earlybert.train.steplog import read_steps
from tests.conftest import write_data, write_model
from tests.recipes.conftest import tiny_flags

STAGES = {"config.yaml": "start", "scores.safetensors": "search", "ticket.json": "draw", "model": "train", "metrics.json": "save"}  # fmt: skip
"""What a run was doing as long as a file was not there."""
LIMIT = 300.0


CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit codes of a run that a signal has stopped."""


def started(words: list[str], log: Path) -> int:
    """The id of a process that runs a command of `earlybert`, its words going to a file."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = earlybert(words)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def ended(process: int, seconds: float) -> int | None:
    """The exit code, negative for a signal; None when it still runs after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.0005)


def stage(run: Path) -> str:
    """What a run was doing when it stopped, by what it has left."""
    doing = next((doing for name, doing in STAGES.items() if not (run / name).exists()), "report")
    half = next(iter(sorted(run.rglob(".*.half"))), None) if run.exists() else None
    return doing if half is None else f"{doing}: writing {half.name[1:].rsplit('.', 2)[0]}"


def moment(draw: random.Random, process: int, run: Path, whole: float) -> int | None:
    """Wait until it is time to stop a run; its exit code when it has ended before."""
    kind = draw.randrange(3)
    if kind == 0:
        return ended(process, draw.random() * whole)
    skipped = draw.randrange(6)
    name = draw.choice([name for name in STAGES if not (run / name).exists()] or ["metrics.json"])
    deadline = time.monotonic() + LIMIT
    before: set[str] = set()
    while time.monotonic() < deadline:
        code = ended(process, 0)
        if code is not None:
            return code
        if kind == 1 and (run / name).exists():
            return ended(process, draw.random() * 0.02)
        halves = {half.name for half in run.glob(".*.half")} if kind == 2 and run.exists() else set()
        skipped -= len(halves - before)
        before |= halves
        if skipped < 0:
            return None
    raise TimeoutError(f"{run} has not ended")


def differences(run: Path, whole: Path) -> list[str]:
    """What is not equal to the bit, or there in one of the two folders only."""

    def names(folder: Path) -> set[str]:
        return {str(file.relative_to(folder)) for file in folder.rglob("*")}

    def log(folder: Path) -> list[dict[str, Any]]:
        return [{**line, "seconds": 0} for line in read_steps(folder / "steps.jsonl")]

    wrong = sorted(names(run) ^ names(whole))
    if wrong:
        return [f"only in one: {name}" for name in wrong]
    exact = ["ticket.json", "history.bin", "predictions.safetensors", "config.yaml"]
    exact += [f"model/{file.name}" for file in (whole / "model").iterdir() if file.name != "README.md"]
    wrong = [name for name in exact if (run / name).read_bytes() != (whole / name).read_bytes()]
    scores = [eb.Scores.load(folder / "scores.safetensors").digest() for folder in (run, whole)]
    wrong += ["scores.safetensors"] if scores[0] != scores[1] else []
    score, steps = (
        [json.loads((folder / "metrics.json").read_bytes())["score"] for folder in (run, whole)],
        (run, whole),
    )
    wrong += ["metrics.json"] if score[0] != score[1] else []
    return wrong + (["steps.jsonl"] if log(steps[0]) != log(steps[1]) else [])


@dataclass
class Found:
    """What came of stopping runs so far."""

    kills: int = 0
    slowest: float = 0.0
    """Seconds from a signal to the end of the process."""
    doing: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Trials:
    """Runs to be stopped, and those that are left alone to compare with."""

    folder: Path
    flags: list[str]
    signal: int
    draw: random.Random

    @property
    def log(self) -> Path:
        """What the runs say."""
        return self.folder / "log"

    def words(self, run: Path, weights: str) -> list[str]:
        """The command that begins a run, or goes on with it."""
        there = (run / "config.yaml").exists()
        return ["finetune", "--output", str(run), *(["--resume"] if there else [*self.flags, weights])]

    def whole(self, weights: str) -> Path:
        """The run that is left alone."""
        return self.folder / "whole" / weights

    def leave_alone(self, weights: str) -> float:
        """Make that run; the seconds it took."""
        begun = time.monotonic()
        if ended(started(self.words(self.whole(weights), weights), self.log), LIMIT) != 0:
            raise SystemExit(f"the run that is left alone has failed:\n{self.log.read_text()[-2000:]}")
        return time.monotonic() - begun

    def stop(self, number: int, weights: str, seconds: float, found: Found) -> None:
        """Stop one run, perhaps twice; then let it end, and compare."""
        run = self.folder / f"run-{number}"
        for _again in range(self.draw.choice((1, 1, 2))):
            process = started(self.words(run, weights), self.log)
            code = moment(self.draw, process, run, seconds)
            if code is None:
                os.kill(process, self.signal)
                sent = time.monotonic()
                code = ended(process, LIMIT)
                found.slowest = max(found.slowest, time.monotonic() - sent)
                found.kills += 1
                found.doing[stage(run)] += 1
            # A run that was told to stop behind its last step has nothing left to stop.
            if code not in (0, CODES[self.signal]):
                found.wrong.append(f"run {number}: exit code {code}: {self.log.read_text()[-500:]}")
        code = ended(started(self.words(run, weights), self.log), LIMIT)
        if code != 0:
            found.wrong.append(f"run {number}: going on ended with {code}: {self.log.read_text()[-500:]}")
        else:
            found.wrong += [f"run {number}: {each}" for each in differences(run, self.whole(weights))]


def main() -> int:
    """Stop runs as often as asked, and write a summary; 1 when something came out otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for the summary")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    found, runs = Found(), 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as name, Progress() as progress:
        folder = Path(name)
        flags = tiny_flags(write_model(folder / "model"), write_data(folder / "data"))
        flags += ["--search-steps", "10", "--epochs", "1", "--weights"]
        trials = Trials(folder, flags, signal.Signals[f"SIG{wanted.signal}"], random.Random(wanted.seed))
        seconds = {weights: trials.leave_alone(weights) for weights in ("reset", "keep")}
        bar = progress.add_task("kills", total=wanted.kills)
        while found.kills < wanted.kills:
            weights = ("reset", "keep")[runs % 2]
            runs += 1
            trials.stop(runs, weights, seconds[weights], found)
            progress.update(bar, completed=found.kills)
    summary = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"python -m tests.faults.kills --kills {wanted.kills} --signal {wanted.signal} --seed {wanted.seed}",
        "kills": found.kills,
        "runs": runs,
        "seconds": round(time.perf_counter() - began, 1),
        "slowest_exit_seconds": round(found.slowest, 3),
        "while": dict(sorted(found.doing.items())),
        "wrong": found.wrong,
    }
    print(json.dumps(summary, indent=2))
    if wanted.output:
        wanted.output.write_text(json.dumps(summary, indent=2) + "\n")
    return int(bool(found.wrong))


if __name__ == "__main__":
    sys.exit(main())
