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
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

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


def main() -> int:
    """Stop runs as often as asked, and write a summary; 1 when something came out otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for the summary")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    draw, number = random.Random(wanted.seed), signal.Signals[f"SIG{wanted.signal}"]
    doing: Counter[str] = Counter()
    wrong: list[str] = []
    slowest, kills = 0.0, 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        log, whole = folder / "log", folder / "whole"
        flags = tiny_flags(write_model(folder / "model"), write_data(folder / "data"))
        flags += ["--search-steps", "10", "--epochs", "1", "--weights"]

        def words(run: Path, weights: str) -> list[str]:
            there = (run / "config.yaml").exists()
            return ["finetune", "--output", str(run), *(["--resume"] if there else [*flags, weights])]

        seconds = {}
        for weights in ("reset", "keep"):
            start = time.monotonic()
            if ended(started(words(whole / weights, weights), log), LIMIT) != 0:
                raise SystemExit(f"the run that is left alone has failed:\n{log.read_text()[-2000:]}")
            seconds[weights] = time.monotonic() - start
        trials = 0
        shown = iter(track(range(wanted.kills), "kills"))
        while kills < wanted.kills:
            weights, run = ("reset", "keep")[trials % 2], folder / f"run-{trials}"
            trials += 1
            for _again in range(draw.choice((1, 1, 2))):
                process = started(words(run, weights), log)
                code = moment(draw, process, run, seconds[weights])
                if code is None:
                    os.kill(process, number)
                    sent = time.monotonic()
                    code = ended(process, LIMIT)
                    slowest = max(slowest, time.monotonic() - sent)
                    kills += 1
                    next(shown, None)
                    doing[stage(run)] += 1
                # A run that was told to stop behind its last step has nothing left to stop.
                if code not in (0, CODES[number]):
                    wrong.append(f"run {trials}: exit code {code}: {log.read_text()[-500:]}")
            code = ended(started(words(run, weights), log), LIMIT)
            if code != 0:
                wrong.append(f"run {trials}: going on ended with {code}: {log.read_text()[-500:]}")
            wrong += (
                [f"run {trials}: {difference}" for difference in differences(run, whole / weights)] if code == 0 else []
            )
        list(shown)
    summary = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"python -m tests.faults.kills --kills {wanted.kills} --signal {wanted.signal} --seed {wanted.seed}",
        "kills": kills,
        "runs": trials,
        "seconds": round(time.perf_counter() - began, 1),
        "slowest_exit_seconds": round(slowest, 3),
        "while": dict(sorted(doing.items())),
        "wrong": wrong,
    }
    print(json.dumps(summary, indent=2))
    if wanted.output:
        wanted.output.write_text(json.dumps(summary, indent=2) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
