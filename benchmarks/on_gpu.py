"""Everything whose truth depends on a GPU, one part after another: tests of the fast step, its benchmarks, and a run.

    python benchmarks/on_gpu.py --out benchmarks/results
    python benchmarks/on_gpu.py --parts tests step --limit 500 --out OUT
    python benchmarks/on_gpu.py --device cpu --quick --parts step inference --out OUT    # does the script work?

Each part is a process of its own: one that fails or runs into the limit takes nothing from the others. `on_gpu.json`
says how each ended and how long it took. A part that ended well is not run again unless `--again`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from earlybert.recipes.run import environment
from earlybert.ticket.files import write_atomically
from earlybert.train.precision import resolve

HERE = Path(__file__).parent
Commands = dict[str, list[str]]


def commands(device: str, out: Path, quick: bool) -> Commands:
    """What each part runs, the most telling first."""

    def script(name: str, full: str, short: str, result: str | None = None) -> list[str]:
        words = (short if quick else full).split()
        file = out / f"{result or name}_{label}.json"
        return [str(HERE / f"{name}.py"), *words, "--device", device, "--out", str(file)]

    label = "gpu" if device == "cuda" else device
    tiny = "--models minilm --shapes sst2 --rounds 1 --steps 2"
    # The demo's run and the dense ones beside it, with the engine that one gets who asks for none.
    demo = ["--config", str(HERE.parent / "configs" / "demo.yaml"), "--compare", "--engine", "auto"]
    if quick:
        demo += ["--train-rows", "64", "--epochs", "1", "--dense-epochs", "2", "--search-steps", "4"]
    pretraining = "--models tiny --shapes 8x64x2 --rounds 1 --steps 2"
    return {
        "tests": ["-m", "pytest", str(HERE.parent / "tests" / "train" / "cuda")],
        "step": script("step_time", "--models base large", tiny),
        "pretrain": script("pretrain_time", "--models base large", pretraining),
        "run": ["-m", "earlybert", "finetune", *demo, "--device", device, "--output", str(out / f"run_{label}")],
        "whole": script("end_to_end", "", "--model minilm --shape sst2 --steps 3 --rounds 1"),
        "inference": script("inference", "--models base large", "--models minilm --seconds 5 --batches 1 8"),
        "compiled": script("step_time", "--compile base:32x128 --shapes 32x128", tiny, "step_time_compiled"),
    }


def run(words: list[str], limit: float) -> int:
    """Exit status of a part; 124 where it ran past the limit, in seconds."""
    try:
        return subprocess.run([sys.executable, "-u", *words], timeout=limit, check=False).returncode
    except subprocess.TimeoutExpired:
        return 124


def main() -> int:
    """Run the parts and write how they ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    names = list(commands("cuda", Path(), quick=False))
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--limit", type=float, default=3600, help="seconds a part may take")
    parser.add_argument("--quick", action="store_true", help="a few steps of a small model, to try the scripts")
    parser.add_argument("--again", action="store_true", help="also what ended well before")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device; --device cpu --quick tries the scripts.", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "on_gpu.json"
    ended = json.loads(record.read_text())["parts"] if record.exists() else {}
    device = torch.device(options.device)
    for name in options.parts:
        if ended.get(name, {}).get("status") == 0 and not options.again:
            continue
        print(f"{name}:", flush=True)
        began = time.monotonic()
        status = run(commands(options.device, options.out, options.quick)[name], options.limit)
        ended[name] = {"status": status, "seconds": round(time.monotonic() - began, 1)}
        found = {"environment": environment(device, resolve("auto", device)), "quick": options.quick, "parts": ended}
        write_atomically(record, json.dumps(found, indent=2).encode())
    for name in options.parts:
        print(f"{name}: {'ended well' if ended[name]['status'] == 0 else 'FAILED'} in {ended[name]['seconds']} s")
    return int(any(ended[name]["status"] != 0 for name in options.parts))


if __name__ == "__main__":
    sys.exit(main())
