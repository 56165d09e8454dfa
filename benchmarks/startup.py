"""How long a command takes before it does anything: `earlybert --help`, other commands, and imports, in turns.

    python benchmarks/startup.py --out benchmarks/results/startup.json

Each is a fresh process, by the wall clock; the first round, which reads files from disk, is told apart from the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from step_time import spread

from earlybert.recipes.run import environment

PROGRAM = Path(sys.executable).with_name("earlybert")
COMMANDS = {
    "earlybert --help": [PROGRAM, "--help"],
    "earlybert finetune --help": [PROGRAM, "finetune", "--help"],
    "earlybert --version": [PROGRAM, "--version"],
    "python -c 'import earlybert'": [sys.executable, "-c", "import earlybert"],
    "python -c 'pass'": [sys.executable, "-c", "pass"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def seconds(command: list[Path | str]) -> float:
    """Wall-clock time of one process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Time them and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    taken = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(1 + arguments.rounds)]
    rows = []
    for name in COMMANDS:
        row = {"command": name, "first": round(taken[0][name], 3), **spread([each[name] for each in taken[1:]])}
        rows.append(row)
        print(f"{name:32} {row['median']:.3f} s [{row['p10']:.3f}, {row['p90']:.3f}], first {row['first']:.3f}")
    arguments.out.write_text(
        json.dumps({"environment": environment(torch.device("cpu"), "no"), "seconds": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
