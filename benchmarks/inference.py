"""Time of a forward pass, dense against ticket: batches of 1 to 256 rows of real lengths, eager and onnxruntime.

    python benchmarks/inference.py --models minilm --seconds 300 --out benchmarks/results/inference_cpu.json
    python benchmarks/inference.py --device cuda --models base large --out benchmarks/results/inference_h100.json

Weights are random: time does not depend on them. Rows have the lengths of a task, short and long ones as they come, and
are padded to the longest of their batch. Dense and ticket take turns, so that drift hits both alike. The ticket is that
of `step_time.py`: 2/3 of the heads and 60 % of the neurons, widths in multiples of 64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_time import lengths_of, model_of, spread

from earlybert import export
from earlybert.cost import count
from earlybert.recipes.run import environment

BATCHES = (1, 8, 32, 128, 256)
PASSES = {"least": 3, "most": 50}
"""Timed passes of each contender."""
NOT_FASTER = 0.97
"""A ticket that takes more of the dense time than this is said not to be faster."""
KINDS = ("dense", "ticket")

Run = Callable[[dict[str, np.ndarray]], object]


def rows_of(shape: str, rows: int, seed: int) -> dict[str, np.ndarray]:
    """Token ids, mask and types (all 0), int64 `[rows, longest]`, with the lengths that rows of a task have."""
    lengths: list[int] = []
    while len(lengths) < rows:
        lengths += lengths_of(shape, seed + len(lengths))[0]
    random = np.random.default_rng(seed)
    taken = random.permutation(lengths)[:rows]
    mask = (np.arange(taken.max())[None] < taken[:, None]).astype(np.int64)
    ids = random.integers(1000, 20000, mask.shape)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def eager(model: Any, device: str) -> Run:
    """The stock modules: fp32 on a CPU, bf16 autocast on CUDA."""
    model = model.to(device).eval()

    def run(batch: dict[str, np.ndarray]) -> object:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(**{name: torch.from_numpy(value).to(device) for name, value in batch.items()}).logits
            return logits.float().cpu()  # waits for the device

    return run


def runtime(model: Any, folder: Path, threads: int) -> tuple[Run, float]:
    """The ONNX export in onnxruntime on the CPU, and its size in MB."""
    import onnxruntime

    file = export.onnx(model, folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    size = sum(part.stat().st_size for part in folder.glob("model.onnx*")) / 1e6
    return lambda batch: session.run(None, batch), size


def measure(pair: dict[str, Run], shape: str, rows: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of a pass of each contender over the same batches, in turns; the ratio is taken batch by batch."""
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    tokens: list[int] = []
    for kind in KINDS:
        pair[kind](rows_of(shape, rows, 0))
    ends = time.perf_counter() + seconds
    while len(tokens) < PASSES["most"] and (len(tokens) < PASSES["least"] or time.perf_counter() < ends):
        batch = rows_of(shape, rows, 1 + len(tokens) * rows)
        tokens.append(int(batch["attention_mask"].sum()))
        for kind in KINDS if len(tokens) % 2 else KINDS[::-1]:
            begin = time.perf_counter()
            pair[kind](batch)
            times[kind].append((time.perf_counter() - begin) * 1e3)
    ratios = [ticket / dense for dense, ticket in zip(times["dense"], times["ticket"], strict=True)]
    ratio = statistics.median(ratios)
    return {
        "rows": rows,
        "passes": len(tokens),
        "tokens": statistics.median(tokens),
        **{kind: spread(values) for kind, values in times.items()},
        "ratio": {key: round(value, 3) for key, value in spread(ratios).items()},
        "faster": ratio <= NOT_FASTER,
    }


def main() -> None:
    """Measure every model, engine and batch; write one result file and say where the ticket is not faster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["minilm"])
    parser.add_argument("--shape", default="sst2", help="task whose lengths rows have")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seconds", type=float, default=300, help="to measure in all, exports not included")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_float32_matmul_precision("highest")  # fp32 as onnxruntime computes it
    engines = ["eager", *(["onnxruntime"] if args.device == "cpu" and find_spec("onnxruntime") else [])]
    # Wide batches need longer for as many passes.
    weights = {rows: rows**0.5 for rows in args.batches}
    share = args.seconds / (len(args.models) * len(engines) * sum(weights.values()))
    about = environment(torch.device(args.device), "bf16" if args.device == "cuda" else "no")
    about["versions"].update({name: version(name) for name in ("onnx", "onnxruntime") if find_spec(name)})
    result: dict[str, Any] = {"environment": about, "shape": args.shape, "models": {}}
    for size in args.models:
        models = {kind: model_of(size, "cpu", ticket=kind == "ticket", qa=False).eval() for kind in KINDS}
        flops = [count(models[kind]).forward([(1, 32)]) for kind in KINDS]
        entry: dict[str, Any] = {
            "parameters": {kind: models[kind].num_parameters() for kind in KINDS},
            "flop_ratio": round(flops[1] / flops[0], 3),
            "engines": {},
        }
        for engine in engines:
            with tempfile.TemporaryDirectory() as folder:
                if engine == "onnxruntime":
                    made = {kind: runtime(models[kind], Path(folder) / kind, torch.get_num_threads()) for kind in KINDS}
                    entry["onnx_mb"] = {kind: round(megabytes, 1) for kind, (_, megabytes) in made.items()}
                    pair = {kind: run for kind, (run, _) in made.items()}
                else:
                    pair = {kind: eager(models[kind], args.device) for kind in KINDS}
                rows = [measure(pair, args.shape, rows, share * weights[rows]) for rows in args.batches]
            entry["engines"][engine] = rows
            for row in rows:
                print(
                    f"{size} {engine} batch {row['rows']}: dense {row['dense']['median']:.2f} ms, ticket "
                    f"{row['ticket']['median']:.2f} ms, {row['ratio']['median']:.2f} "
                    f"({row['ratio']['p10']:.2f}-{row['ratio']['p90']:.2f}) of it"
                    f"{'' if row['faster'] else '  NOT FASTER'}",
                    flush=True,
                )
        result["models"][size] = entry
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
