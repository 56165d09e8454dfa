"""Time of one optimizer step: the stock modules run eagerly, and the fast step, dense and ticket, in turns.

    python benchmarks/step_time.py --models base large --out step_time_h100.json
    python benchmarks/step_time.py --device cpu --models minilm --shapes sst2 --out step_time_cpu.json

Weights are random: time does not depend on them. The ticket keeps 2/3 of the heads (10 of 16 for large) and 60 %
of the neurons, per-layer widths falling from 85 % to 35 %, multiples of 64. Systems take turns of `--steps` steps
each, so that drift hits all alike; with `--steps 1` every batch is timed on one system after the other. `over_dense`
is the ratio to the fast dense step, batch by batch. By default three batches come again and again; `--group N` times
batches that change as those of a run do: what is made anew for every size of batch counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from earlybert import Gates, Ticket
from earlybert.cost import PEAK, count
from earlybert.recipes.run import environment
from earlybert.tasks.batches import Batch
from earlybert.ticket.surgery import cut
from earlybert.train.clock import Clock
from earlybert.train.engine import build
from earlybert.train.heap import keep_freed
from earlybert.train.optimizer import adamw
from earlybert.train.precision import resolve
from earlybert.train.step import EagerStep

T = TypeVar("T")
SIZES: dict[str, dict[str, int]] = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
BATCHES = 3
"""Different batches that systems are timed on, and warmed up with, unless more are asked for."""
REMOVED_HEADS = {"minilm": 4, "base": 4, "large": 6}
KERNELS = {
    "nvjet": "matrix products",
    "gemm": "matrix products",
    "flash": "attention",
    "_adamw": "AdamW",
    "_moments": "LAMB",
    "_trust": "LAMB",
    "_apply": "LAMB",
    "_accumulate": "adding up micro-batches",
    "_squares": "gradient norm",
    "_add_norm": "bias, dropout, add, LayerNorm",
    "_bias_gelu": "bias, GELU",
    "_join": "sums over rows",
    "_finish": "sums over rows",
    "_embed": "embeddings",
    "_add_rows": "embeddings",
    "_scale": "coefficients of heads",
    "_unscale": "coefficients of heads",
    "RadixSort": "embedding gradients",
    "compute_grad_weight": "embedding gradients",
    "sum_and_scatter": "embedding gradients",
    "embedding": "embedding gradients",
    "reduce_kernel": "sums over rows",
    "CatArray": "copies",
    "Memset": "copies",
    "Memcpy": "copies",
    "Fill": "copies",
    "elementwise": "element-wise",
}
"""Marks in kernel names, and what the kernels are for."""
OPERATIONS = {
    "aten::mm": "matrix products",
    "aten::addmm": "matrix products",
    "bmm": "attention",
    "softmax": "attention",
    "index_select": "attention",
    "_Attention": "attention",
    "scaled_dot_product": "attention",
    "copy": "copies and conversions",
    "adamw": "AdamW",
    "Optimizer": "AdamW",
    "random": "dropout",
    "bitwise": "dropout",
    "ropout": "dropout",
    "gelu": "GELU",
    "layer_norm": "LayerNorm",
    "vector_norm": "gradient norm",
    "aten::sum": "sums over rows",
    "embedding": "embeddings",
    "index_add": "embeddings",
    "_Lookup": "embeddings",
}
"""Marks in names of operations on a CPU, and what they are for; the rest is small ones, and calling all of them."""


def lengths_of(shape: str, seed: int) -> tuple[list[int], int]:
    """Tokens of each row, and what the stock padding to a fixed length would make of them."""
    random = np.random.default_rng(seed)
    if shape == "qqp":  # mean 30, as counted on QQP with BERT's tokenizer
        return np.clip(random.gamma(6, 4.5, 32).astype(int) + 3, 8, 128).tolist(), 128
    if shape == "sst2":  # mean 13, rows of like length together as the batches of this package are
        return np.sort(np.clip(random.gamma(3.5, 2.8, 32).astype(int) + 3, 4, 66)).tolist(), 128
    rows, length = map(int, shape.split("x"))
    return [length] * rows, length


def batches_of(shape: str, count: int, *, grouped: bool) -> list[list[int]]:
    """Tokens of the rows of so many batches, drawn one by one or, as a run has them, out of all rows by length."""
    drawn = [lengths_of(shape, seed)[0] for seed in range(count)]
    if not grouped:
        return drawn
    rows = len(drawn[0])
    ordered = sorted(length for batch in drawn for length in batch)
    groups = [ordered[begin : begin + rows] for begin in range(0, len(ordered), rows)]
    np.random.default_rng(0).shuffle(groups)
    return groups


def batch_of(lengths: list[int], width: int, seed: int, qa: bool) -> Batch:
    """Random rows padded to `width` tokens."""
    random = torch.Generator().manual_seed(seed)
    present = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1000, 30000, (len(lengths), width), generator=random) * present
    batch = {"input_ids": ids, "attention_mask": present.long(), "token_type_ids": torch.zeros_like(ids)}
    if qa:
        ends = {"start_positions": torch.tensor(lengths) // 3, "end_positions": torch.tensor(lengths) // 2}
        return {**batch, **ends}
    return {**batch, "labels": torch.randint(0, 2, (len(lengths),), generator=random)}


def model_of(size: str, device: str, *, ticket: bool, qa: bool) -> Any:
    """A model with random weights, whole or cut, in training mode."""
    torch.manual_seed(0)
    config = BertConfig(**SIZES[size])  # pyright: ignore[reportArgumentType]
    model: Any = BertForQuestionAnswering(config) if qa else BertForSequenceClassification(config)
    if ticket:
        layers, heads, neurons = config.num_hidden_layers, config.num_attention_heads, config.intermediate_size
        widths = [int(round(share * neurons / 64) * 64) for share in np.linspace(0.85, 0.35, layers)]
        kept = tuple(range(heads - REMOVED_HEADS[size]))
        cut(model, Ticket((kept,) * layers, tuple(tuple(range(w)) for w in widths), "bert", heads, neurons))
    return model.to(device).train()


def matmul_rate(device: str) -> float:
    """FLOP/s of a large matrix product here, in the fast step's precision: what the floor below is counted with."""
    size = 8192 if device == "cuda" else 1024
    half = resolve("auto", torch.device(device)) == "bf16"
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if half else torch.float32)
    clock = Clock(torch.device(device))
    for _ in range(3):
        torch.mm(a, a)
    for _ in range(10):
        with clock:
            torch.mm(a, a)
    return 2 * size**3 / statistics.median(clock.read())


def systems(
    size: str, shape: str, device: str, compiled: bool, batches: Sequence[list[int]]
) -> dict[str, tuple[EagerStep, Callable[[int], Batch]]]:
    """Each system with its own model, and what its batches look like."""
    qa = shape.endswith("384")
    fixed = lengths_of(shape, 0)[1]

    def longest(number: int) -> Batch:
        return batch_of(batches[number], -(-max(batches[number]) // 8) * 8, number, qa)

    def padded(number: int) -> Batch:
        return batch_of(batches[number], fixed, number, qa)

    def make(engine: Any, ticket: bool, precision: Any = "auto", **options: Any) -> EagerStep:
        model = model_of(size, device, ticket=ticket, qa=qa)
        mode = resolve(precision, torch.device(device))
        return build(engine, model, adamw(model, lr=2e-5), precision=mode, **options)

    def searching() -> EagerStep:
        model = model_of(size, device, ticket=False, qa=qa)
        gates = Gates(model).attach()
        mode = resolve("auto", torch.device(device))
        return build("fast", model, adamw(model, lr=2e-5, gates=gates), precision=mode, gates=gates, l1=(1e-4, 1e-4))

    found: dict[str, tuple[EagerStep, Callable[[int], Batch]]] = {}
    if device == "cpu":
        found["stock eager fp32, padded to 128"] = make("eager", False, "no"), padded
        if found["stock eager fp32, padded to 128"][0].precision != resolve("auto", torch.device(device)):
            found["stock eager, padded to 128"] = make("eager", False), padded
    found["stock eager, padded to longest"] = make("eager", False), longest
    found["stock eager ticket, padded to longest"] = make("eager", True), longest
    found["fast dense"] = make("fast", False), longest
    found["fast search"] = searching(), longest
    found["fast ticket"] = make("fast", True), longest
    if compiled:
        found["fast dense, compiled"] = make("fast", False, compile=True), longest
        found["fast ticket, compiled"] = make("fast", True, compile=True), longest
    return found


def measure(
    size: str, shape: str, device: str, *, rounds: int, steps: int, compiled: bool, group: int, only: str = ""
) -> list[dict[str, Any]]:
    """Median, spread, FLOPs and peak memory of every system on one shape."""
    batches = batches_of(shape, group or BATCHES, grouped=group > 0)
    made = systems(size, shape, device, compiled, batches)
    contenders = {name: system for name, system in made.items() if name.startswith(only)}
    made.clear()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    notes: dict[str, dict[str, Any]] = {}
    for name, (step, batch) in contenders.items():
        began = time.perf_counter()
        for number in range(BATCHES):
            for _ in range(2):  # twice: the second time captures the graph
                step(step.prepare([batch(number)]))
        if device == "cuda":
            torch.cuda.synchronize()
        notes[name] = {"warm_up_seconds": round(time.perf_counter() - began, 2)}
    for turn in range(rounds):
        for name, (step, batch) in contenders.items():
            clock = Clock(step.device)
            prepared = [step.prepare([batch((turn * steps + each) % len(batches))]) for each in range(steps)]
            for data in prepared:
                with clock:
                    step(data)
            times[name] += clock.read()
    for name, (step, batch) in contenders.items():
        flops = [count(step.model).step(step.shapes([batch(number)])) for number in range(len(batches))]
        notes[name] |= {"flops": sum(flops) / len(flops), "graphs": on_graphs(step)}
        if name.startswith("fast"):
            notes[name]["kernels_ms"] = where_time_goes(step, step.prepare([batch(0)]))
            ratios = [mine / dense for mine, dense in zip(times[name], times["fast dense"], strict=True)]
            notes[name]["over_dense"] = spread(ratios)
    rows = [_row(size, shape, name, sorted(times[name]), notes[name]) for name in contenders]
    contenders.clear()
    return rows


def _row(size: str, shape: str, name: str, times: list[float], notes: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": size,
        "shape": shape,
        "system": name,
        "median_ms": 1e3 * statistics.median(times),
        "p10_ms": 1e3 * times[len(times) // 10],
        "p90_ms": 1e3 * times[-len(times) // 10],
        "steps": len(times),
        **notes,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, and the 10th and 90th percentile."""
    low, middle, high = np.percentile(values, [10, 50, 90])
    return {"median": round(float(middle), 3), "p10": round(float(low), 3), "p90": round(float(high), 3)}


def where_time_goes(step: EagerStep, data: Any, repeats: int = 5) -> dict[str, float]:
    """Milliseconds a step in each kind of kernel, or of operation on a CPU, as torch's profiler tells them."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = step.device.type == "cuda"
    marks = KERNELS if on_gpu else OPERATIONS
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            step(data)
        if on_gpu:
            torch.cuda.synchronize()
    kinds: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = next((kind for mark, kind in marks.items() if mark in event.key), "other")
        spent = event.device_time_total if on_gpu else event.self_cpu_time_total
        kinds[kind] = kinds.get(kind, 0.0) + spent / 1e3 / repeats
    return dict(sorted(kinds.items(), key=lambda entry: -entry[1]))


def peak_memory(size: str, shape: str) -> dict[str, dict[str, float]]:
    """Peak memory of each system alone: weights, optimizer, activations and graphs."""
    qa = shape.endswith("384")
    batches = [[batch_of(*lengths_of(shape, seed), seed, qa)] for seed in range(3)]

    def make(engine: Any, ticket: bool) -> EagerStep:
        model = model_of(size, "cuda", ticket=ticket, qa=qa)
        return build(engine, model, adamw(model, lr=2e-5), precision="bf16")

    return {
        f"{engine} {'ticket' if ticket else 'dense'}": peak_of(lambda: make(engine, ticket), batches)  # noqa: B023
        for engine in ("eager", "fast")
        for ticket in (False, True)
    }


def peak_of(make: Callable[[], EagerStep], batches: Sequence[Sequence[Batch]]) -> dict[str, float]:
    """Most GiB that tensors held, and that were taken from the GPU: what graphs keep counts in the second alone."""
    gc.collect()  # what is still referenced in a cycle would count as there, and then go
    torch.cuda.empty_cache()
    held, taken = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    step = make()
    for _ in range(3):  # the second and third time capture graphs
        for micro_batches in batches:
            step(step.prepare(micro_batches))
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated() - held, torch.cuda.max_memory_reserved() - taken
    return dict(zip(("allocated", "reserved"), (size / 2**30 for size in most), strict=True))


def on_graphs(step: EagerStep) -> bool | None:
    """Whether a step still takes CUDA graphs, which it gives up where memory is short; None where it has none."""
    graphs = getattr(step, "graphs", None)
    return None if graphs is None else graphs.limit > 0


def unless_full(measured: Callable[[], T], left_out: dict[str, str], name: str) -> T | None:
    """What is measured; None where the GPU has too little memory, which is noted under a name."""
    try:
        return measured()
    except torch.OutOfMemoryError as error:
        left_out[name] = str(error).splitlines()[0]
    print(f"{name}: left out, out of memory", flush=True)
    gc.collect()
    torch.cuda.empty_cache()
    return None


def main() -> None:
    """Measure, print one line a system, write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", default=["base"], choices=list(SIZES))
    parser.add_argument("--shapes", nargs="+", default=["32x128", "qqp", "sst2", "256x128", "12x384"])
    parser.add_argument("--compile", nargs="*", default=[], help="model:shape pairs to measure compiled, too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--group", type=int, default=0, help="rows of so many batches, grouped by length as in a run")
    parser.add_argument("--only", default="", help="systems whose names begin so; fast dense must be among them")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if 0 < args.group < BATCHES:
        parser.error(f"--group takes {BATCHES} batches or more.")
    if not "fast dense".startswith(args.only):
        parser.error("--only must leave fast dense in: ratios are to it.")

    device = torch.device(args.device)
    kept = args.device == "cpu" and keep_freed()  # as runs on a CPU have it; the stock systems here have it, too
    rate = matmul_rate(args.device)
    result: dict[str, Any] = {
        "environment": environment(device, resolve("auto", device)),
        "keeps_freed_memory": kept,
        "batches": args.group or BATCHES,
        "matmul_flops_per_second": rate,
        "rows": [],
        "peak_gib": {},
        "left_out": {},
    }
    peak = PEAK.get(result["environment"]["device"])
    for size in args.models:
        for shape in args.shapes:
            compiled = f"{size}:{shape}" in args.compile
            how = {"rounds": args.rounds, "steps": args.steps, "compiled": compiled}
            how |= {"group": args.group, "only": args.only}
            name = f"{size} {shape}"
            rows = unless_full(lambda: measure(size, shape, args.device, **how), result["left_out"], name)  # noqa: B023
            for row in rows or []:
                row["floor_ms"] = 1e3 * row["flops"] / rate
                row["over_floor"] = row["median_ms"] / row["floor_ms"]
                row["mfu"] = row["flops"] / (row["median_ms"] / 1e3) / peak if peak else None
                result["rows"].append(row)
                print(
                    f"{size:7s} {shape:8s} {row['system']:40s} {row['median_ms']:9.2f} ms "
                    f"[{row['p10_ms']:.2f}, {row['p90_ms']:.2f}]  {row['over_floor']:.1f} x floor",
                    flush=True,
                )
            if args.device == "cuda":
                found = unless_full(lambda: peak_memory(size, shape), result["left_out"], f"{name}, peak")  # noqa: B023
                result["peak_gib"] |= {name: found} if found else {}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["peak_gib"]))


if __name__ == "__main__":
    main()
