"""What `earlybert prepare` costs: CPU seconds and wall-clock time, with a vocabulary to train and with one given.

    python benchmarks/prepare.py corpus_*.txt.xz --megabytes 100 --workers 2 --out benchmarks/results/prepare.json

The first so many megabytes of the text (unpacked, whole documents) are written to one plain file and prepared twice, in
processes of their own: with a vocabulary trained on them, and with that vocabulary. CPU seconds are user and system
time: of training the vocabulary, of the process that reads, hashes and writes, and of the workers that split and
tokenise; on a machine that is busy with other things they say more than the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("earlybert", "tokenizers", "sentencex", "numpy", "transformers")
MEGABYTE = 1_000_000


def first_part(files: Sequence[str], megabytes: float, into: Path) -> int:
    """Write the first documents of these files, about so many megabytes; how many bytes that are."""
    from earlybert.data import sources

    size = 0
    with open(into, "w", encoding="utf-8") as out:
        for source in sources.files(files, column="text", wrong_bytes="skip"):
            for found in source.documents():
                if found.text:
                    size += out.write(found.text + "\n\n")
                if size >= megabytes * MEGABYTE:
                    return into.stat().st_size
    return into.stat().st_size


def cpu_seconds(who: int = resource.RUSAGE_SELF) -> float:
    """User and system time of this process, or of its children that have ended."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def prepare(text: Path, folder: Path, workers: int, tokenizer: str | None) -> dict[str, Any]:
    """Prepare a corpus in this process; seconds by stage, and what came out."""
    from earlybert.config.prepare import Preparation
    from earlybert.data import prepare, sources, vocabulary

    spent = {"vocabulary": 0.0}
    train = vocabulary.train

    def timed(*args: Any, **kwargs: Any) -> None:
        before = cpu_seconds()
        train(*args, **kwargs)
        spent["vocabulary"] = cpu_seconds() - before

    vocabulary.train = timed
    before, began = cpu_seconds(), time.perf_counter()
    found = sources.files([text], column="text", wrong_bytes="refuse")
    manifest = prepare.prepare(found, folder, Preparation(tokenizer=tokenizer), workers=workers)
    wall, here = time.perf_counter() - began, cpu_seconds() - before - spent["vocabulary"]
    children = cpu_seconds(resource.RUSAGE_CHILDREN)
    stages = {**spent, "read_hash_write": here, "split_tokenise": children}
    if workers == 1:
        stages = {**spent, "read_split_tokenise_write": here}
    counts = manifest["counts"]
    return {
        "wall_seconds": wall,
        "cpu_seconds": {**stages, "all": sum(stages.values())},
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,  # of the main process
        "documents": counts["read"],
        "tokens": sum(counts[split]["tokens"] for split in ("train", "validation")),
        "shards_sha256": [entry["sha256"] for entry in manifest["shards"]],
    }


def apart(*words: object) -> dict[str, Any]:
    """`prepare` in a fresh process."""
    command = [sys.executable, __file__, "--one", *map(str, words)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    """Measure and write the file."""
    if sys.argv[1:2] == ["--one"]:
        text, folder, workers, *tokenizer = sys.argv[2:]
        print(json.dumps(prepare(Path(text), Path(folder), int(workers), *(tokenizer or [None]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="text files, as of earlybert prepare")
    parser.add_argument("--megabytes", type=float, default=100.0, help="of text, unpacked")
    parser.add_argument("--workers", type=int, default=2, help="processes that tokenise")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/prepare.json"))
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        text = Path(place) / "text.txt"
        size = first_part(args.files, args.megabytes, text) / MEGABYTE
        trained = apart(text, Path(place) / "trained", args.workers)
        given = apart(text, Path(place) / "given", args.workers, Path(place) / "trained" / "tokenizer")
    if trained["shards_sha256"] != given["shards_sha256"]:
        raise SystemExit("the same vocabulary gave other shards.")
    rows = {"vocabulary_trained": trained, "tokenizer_given": given}
    for name, row in rows.items():
        row["cpu_seconds_per_megabyte"] = {stage: took / size for stage, took in row["cpu_seconds"].items()}
        print(
            f"{name}: {size:.1f} MB in {row['wall_seconds']:.1f} s, {row['cpu_seconds']['all']:.1f} s of CPU, "
            + ", ".join(f"{stage} {took:.3f}" for stage, took in row["cpu_seconds_per_megabyte"].items())
            + " s/MB"
        )
    result = {
        "date": date.today().isoformat(),
        "megabytes": size,
        "workers": args.workers,
        "runs": rows,
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load_before": load,
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in PACKAGES},
        "command": " ".join(["python", "benchmarks/prepare.py", *(Path(word).name for word in sys.argv[1:])]),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


def _processor() -> str:
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
