"""Spoiled files, as many as wanted: each is read, or refused with a sentence; anything else is a bug.

    python -m tests.faults.fuzz --inputs 1000000 --output benchmarks/results/fuzz.json

Inputs are the same for the same seed. A process may take a gigabyte beyond what its imports take, and an input five
seconds, or that is a bug, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from earlybert import Refused
from earlybert.config.checks import BadSetting

BATCH = 2_000
ROOM = 1 << 30
"""Bytes of address space for the reading itself."""
PATIENCE = 5.0
"""Seconds for one input."""
SHOWN = 1_000
"""Bytes of an input that is reported."""


class TooSlow(BaseException):
    """An input that takes longer than `PATIENCE`."""


def outcome(reader: Any, path: Path, content: bytes) -> tuple[str, str]:
    """`accepted`, `refused` or `bug`, and what was said."""
    path.write_bytes(content)
    try:
        reader.read(path)
    except (Refused, BadSetting) as error:
        sentence = str(error)
        clean = sentence and "\n" not in sentence and len(sentence) < 2_000
        return ("refused", sentence) if clean else ("bug", f"not a sentence: {sentence[:300]!r}")
    except (Exception, TooSlow) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "bug", f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
    return "accepted", ""


def batch(seed: int, count: int) -> tuple[Counter[str], list[dict[str, str]], float]:
    """Try `count` inputs: how many of each outcome, the bugs, and the longest time."""
    from tests.faults.mutate import spoiled

    folder, kinds = _state()
    draw = random.Random(seed)
    names, weights = list(kinds), [kind.weight for kind in kinds.values()]
    counts: Counter[str] = Counter()
    bugs: list[dict[str, str]] = []
    longest = 0.0
    for name in draw.choices(names, weights, k=count):
        reader = kinds[name]
        content = spoiled(draw, draw.choice(reader.whole))
        began = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        try:
            result, said = outcome(reader, folder / reader.name, content)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        longest = max(longest, time.perf_counter() - began)
        counts[f"{name} {result}"] += 1
        if result == "bug":
            bugs.append({"reader": name, "error": said, "input": content[:SHOWN].hex()})
    return counts, bugs, longest


_made: list[Any] = []


def _state() -> tuple[Path, Any]:
    """Where this process writes its inputs, and what reads them."""
    if not _made:
        from tests.faults.mutate import readers

        warnings.simplefilter("ignore")
        signal.signal(signal.SIGALRM, _late)
        folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=os.environ.get("FUZZ_FOLDER")))
        _made.extend((folder, readers(folder)))
        for reader in _made[1].values():  # what is imported late is imported now
            for whole in reader.whole:
                assert outcome(reader, folder / reader.name, whole)[0] == "accepted"
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
    return _made[0], _made[1]


def _late(*_: object) -> None:
    raise TooSlow


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _batch(seed: int, count: int) -> tuple[Counter[str], list[dict[str, str]], float, int, int]:
    return *batch(seed, count), _peak(), os.getpid()


def main() -> int:
    """Try them all, with a bar, and write the summary; 1 when there is a bug."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="JSON file for the summary")
    wanted = parser.parse_args()
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    bugs: list[dict[str, str]] = []
    longest, first, peak = 0.0, {}, {}
    memory = Path("/dev/shm")
    root = tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None)
    os.environ["FUZZ_FOLDER"] = root
    sizes = [min(BATCH, wanted.inputs - start) for start in range(0, wanted.inputs, BATCH)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    try:
        with Progress(*columns) as bar, ProcessPoolExecutor(wanted.processes, get_context("spawn")) as pool:
            task = bar.add_task("inputs", total=wanted.inputs)
            futures = {pool.submit(_batch, wanted.seed * 1_000_003 + n, size): size for n, size in enumerate(sizes)}
            for future in as_completed(futures):
                some, found, slowest, memory_used, process = future.result()
                counts += some
                bugs += found
                longest = max(longest, slowest)
                first.setdefault(process, memory_used)
                peak[process] = max(memory_used, peak.get(process, 0))
                bar.update(task, advance=futures[future], description=f"{len(bugs)} bugs")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    summary = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"python -m tests.faults.fuzz --inputs {wanted.inputs} --seed {wanted.seed}",
        "python": platform.python_version(),
        "inputs": wanted.inputs,
        "seconds": round(time.perf_counter() - began, 1),
        **{result: sum(n for name, n in counts.items() if name.endswith(result)) for result in ("accepted", "refused", "bug")},
        "readers": {name: counts[name] for name in sorted(counts)},
        "longest_input_seconds": round(longest, 3),
        "memory_growth_mb": round(max((peak[p] - first[p] for p in peak), default=0) / 2**20, 1),
        "bugs": bugs[:50],
    }  # fmt: skip
    print(json.dumps({**summary, "bugs": [f"{bug['reader']}: {bug['error']}" for bug in bugs[:50]]}, indent=2))
    if wanted.output:
        wanted.output.write_text(json.dumps(summary, indent=2) + "\n")
    return int(bool(bugs))


if __name__ == "__main__":
    sys.exit(main())
