"""Small runs, one after another in one process, for as long as wanted: memory, descriptors and files have to stay.

    python -m tests.faults.soak --minutes 20 --output benchmarks/results/soak.json

Each round fine-tunes with a ticket, makes its report, loads the model and refuses a broken one. A run folder is removed
when its round is over. The first tenth of the rounds (one at least) is left out of the judgement: libraries load lazily.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import earlybert as eb
from earlybert.cli import main as earlybert
from tests.conftest import write_data, write_model
from tests.recipes.conftest import tiny_flags

GROWTH_MB_PER_HOUR = 60.0
"""More than this, as a line through the second half, counts as a leak."""


def memory_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def one_round(folder: Path, flags: list[str], number: int) -> int:
    """A run and what is done with it; how many files it has."""
    run = folder / "run"
    method = ("reset", "keep")[number % 2]
    words = [["finetune", *flags, "--weights", method, "--output", str(run)], ["report", str(run)]]
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing), redirect_stderr(nothing):
        codes = [earlybert(line) for line in words]
    if codes != [0, 0]:
        raise SystemExit(f"round {number} ended with {codes}")
    eb.load(run / "model")
    (run / "ticket.json").write_text("{")
    try:
        eb.Ticket.load(run / "ticket.json")
    except eb.Refused:
        pass
    else:
        raise SystemExit("a broken ticket was read")
    files = sum(file.is_file() for file in run.rglob("*"))
    shutil.rmtree(run)
    return files


def main() -> int:
    """Go round, and write a summary; 1 when something grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--runs", type=int, help="so many rounds instead")
    parser.add_argument("--output", type=Path, help="JSON file for the summary")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        temporary = folder / "tmp"  # what a run leaves outside of its folder would be here
        temporary.mkdir()
        tempfile.tempdir = str(temporary)
        flags = tiny_flags(write_model(folder / "model"), write_data(folder / "data"))
        flags += ["--search-steps", "6", "--epochs", "0.5"]
        about = {str(file) for file in folder.rglob("*")}
        with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()) as bar:
            task = bar.add_task("rounds", total=wanted.runs or 60 * wanted.minutes)
            while len(rows) < wanted.runs if wanted.runs else time.perf_counter() - began < 60 * wanted.minutes:
                files = one_round(folder, flags, len(rows))
                gc.collect()
                rows.append(
                    {
                        "second": round(time.perf_counter() - began, 1),
                        "memory_mb": round(memory_mb(), 2),
                        "descriptors": len(os.listdir("/proc/self/fd")),
                        "threads": threading.active_count(),
                        "files_of_the_run": files,
                    }
                )
                done = len(rows) if wanted.runs else rows[-1]["second"]
                bar.update(task, completed=done, description=f"round {len(rows)}, {rows[-1]['memory_mb']:.0f} MB")
        left = sorted({str(file) for file in folder.rglob("*")} - about)
    settled = rows[max(1, len(rows) // 10) :] or rows
    half = settled[len(settled) // 2 :]
    slope = (
        float(np.polyfit([row["second"] for row in half], [row["memory_mb"] for row in half], 1)[0])
        if len(half) > 9
        else None
    )
    growing = [name for name in ("descriptors", "threads") if half[-1][name] > settled[0][name]]
    growing += ["memory"] if slope is not None and slope * 3600 > GROWTH_MB_PER_HOUR else []
    growing += ["files of a run"] if len({row["files_of_the_run"] for row in settled}) > 1 else []
    growing += ["files outside of the run"] if left else []
    summary = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"python -m tests.faults.soak --minutes {wanted.minutes:g}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "runs": len(rows),
        "minutes": round((time.perf_counter() - began) / 60, 2),
        "memory_mb": {"first": settled[0]["memory_mb"], "last": settled[-1]["memory_mb"], "most": max(row["memory_mb"] for row in rows)},
        "memory_growth_mb_per_hour": None if slope is None else round(slope * 3600, 2),
        "descriptors": {"first": settled[0]["descriptors"], "last": settled[-1]["descriptors"]},
        "files_of_a_run": sorted({row["files_of_the_run"] for row in settled}),
        "files_left_outside": len(left),
        "growing": growing,
    }  # fmt: skip
    print(json.dumps(summary, indent=2))
    if wanted.output:
        wanted.output.write_text(json.dumps({**summary, "rounds": rows[:: max(1, len(rows) // 200)]}, indent=1) + "\n")
    if left:
        print("left behind:", *left[:20], sep="\n", file=sys.stderr)
    return int(bool(growing))


if __name__ == "__main__":
    sys.exit(main())
