"""Time of pre-training steps: stock Hugging Face, the plain step, and the fast step (dense, ticket, search), in turns.

    python benchmarks/pretrain_time.py --models base large --out benchmarks/results/pretrain_time_h100.json
    python benchmarks/pretrain_time.py --device cpu --models tiny --shapes 8x64x2 --rounds 1 --steps 2 --out cpu.json

BERT with next-sentence prediction, random weights, full rows of random tokens, 15 % of them predicted. An optimizer
step is `rows x length x micro-batches`. The ticket has lost 4 of 12 heads a layer (6 of 16 for large) and 30 % of the
neurons, per-layer widths falling from 95 % to 45 %, multiples of 64. *Stock* is `BertForPreTraining` with labels in
bf16 autocast, which projects every place onto the vocabulary, with torch's fused AdamW; all others have LAMB and
project masked places alone. Systems take turns, so that drift hits all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import step_time
import torch
from transformers import BertConfig, BertForPreTraining

from earlybert import Gates, Ticket
from earlybert.cost import PEAK, masked
from earlybert.data.masking import most
from earlybert.recipes.run import environment
from earlybert.tasks.batches import Batch
from earlybert.ticket.surgery import cut
from earlybert.train.clock import Clock
from earlybert.train.engine import build
from earlybert.train.lamb import lamb
from earlybert.train.optimizer import adamw
from earlybert.train.precision import resolve
from earlybert.train.step import EagerStep

VOCABULARY = 30_528
"""BERT's 30,522, rounded up as `earlybert pretrain` does."""
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256},
    **{name: step_time.SIZES[name] for name in ("base", "large")},
}
SHAPES = ("64x128x8", "256x128x4", "16x512x8")
MASK, MASKED = 103, 0.8
"""BERT's [MASK], and the share of predicted places that show it."""
REMOVED_HEADS = {"tiny": 1, **step_time.REMOVED_HEADS}
Shape = tuple[int, int, int]
"""Rows of a micro-batch, their length, micro-batches of a step."""
System = tuple[EagerStep, Callable[[int], list[Batch]]]
"""A step, and the micro-batches of a seed."""


def micro_batch(rows: int, length: int, seed: int) -> Batch:
    """As `data.stream` makes them, of random tokens."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, 30_000, (rows, length), generator=random)
    ranks = torch.rand(rows, length - 2, generator=random).argsort(1)[:, : most(length)]
    places = (ranks.sort(1).values + 1 + length * torch.arange(rows)[:, None]).flatten()
    ids.view(-1)[places[torch.rand(len(places), generator=random) < MASKED]] = MASK
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": (torch.arange(length) >= length // 2).long().expand_as(ids).contiguous(),
        "masked_positions": places,
        "masked_labels": torch.randint(1000, 30_000, places.shape, generator=random),
        "next_sentence_label": torch.randint(0, 2, (rows,), generator=random),
    }


def with_labels(batch: Batch) -> Batch:
    """The same as stock models take it: a label for every place."""
    labels = torch.full((batch["input_ids"].numel(),), -100)
    labels[batch["masked_positions"]] = batch["masked_labels"]
    kept = {name: value for name, value in batch.items() if not name.startswith("masked_")}
    return {**kept, "labels": labels.view_as(batch["input_ids"])}


def model_of(size: str, device: str, *, ticket: bool) -> Any:
    """A model with random weights, whole or cut, in training mode."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=VOCABULARY, **SIZES[size])  # pyright: ignore[reportArgumentType]
    model: Any = BertForPreTraining(config)
    if ticket:
        layers, heads, neurons = config.num_hidden_layers, config.num_attention_heads, config.intermediate_size
        widths = [int(round(share * neurons / 64) * 64) for share in np.linspace(0.95, 0.45, layers)]
        kept = tuple(range(heads - REMOVED_HEADS[size]))
        cut(model, Ticket((kept,) * layers, tuple(tuple(range(w)) for w in widths), "bert", heads, neurons))
    return model.to(device).train()


def systems(size: str, shape: Shape, device: str) -> dict[str, System]:
    """Each system with its own model."""
    rows, length, micro = shape
    precision = resolve("auto", torch.device(device))

    def masked_batches(seed: int) -> list[Batch]:
        return [micro_batch(rows, length, micro * seed + number) for number in range(micro)]

    def stock_batches(seed: int) -> list[Batch]:
        return [with_labels(batch) for batch in masked_batches(seed)]

    def make(engine: Any, *, ticket: bool = False, search: bool = False) -> System:
        model = model_of(size, device, ticket=ticket)
        gates = Gates(model).attach() if search else None
        settings: dict[str, Any] = {"gates": gates, "l1": (1e-4, 1e-4)} if gates is not None else {}
        step = build(engine, model, lamb(model, lr=1e-4, gates=gates), masked=True, precision=precision, **settings)
        return step, masked_batches

    stock = model_of(size, device, ticket=False)
    return {
        "stock, AdamW": (
            EagerStep(stock, adamw(stock, lr=1e-4, weight_decay=0.01), precision=precision),
            stock_batches,
        ),
        "eager dense": make("eager"),
        "fast dense": make("fast"),
        "fast search": make("fast", search=True),
        "fast ticket": make("fast", ticket=True),
    }


def measure(size: str, shape: Shape, device: str, *, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Median, spread, tokens a second and FLOPs of every system on one shape."""
    contenders = systems(size, shape, device)
    rounded: dict[str, list[list[float]]] = {name: [] for name in contenders}
    host: dict[str, list[float]] = {name: [] for name in contenders}
    wall = dict.fromkeys(contenders, 0.0)
    notes: dict[str, dict[str, Any]] = {}
    for name, (step, batches) in contenders.items():
        began = time.perf_counter()
        for _ in range(3):  # the second and third time capture graphs
            step(step.prepare(batches(0)))
        _wait(device)
        notes[name] = {"warm_up_seconds": round(time.perf_counter() - began, 2)}
    for number in range(rounds):
        for name, (step, batches) in contenders.items():
            data = [batches(number * steps + one) for one in range(steps)]
            clock = Clock(step.device)
            began = time.perf_counter()
            for micro_batches in data:  # as the training loop does it: the next step is prepared while this one runs
                start = time.perf_counter()
                prepared = step.prepare(micro_batches)
                host[name].append(time.perf_counter() - start)
                with clock:
                    step(prepared)
            _wait(device)
            wall[name] += time.perf_counter() - began
            rounded[name].append(clock.read())
    for name, (step, batches) in contenders.items():
        flops = _flops(name, step, batches(0), shape)
        notes[name] |= {"engine": type(step).__name__, "graphs": step_time.on_graphs(step), "flops": flops}
        if device == "cuda" and name.startswith("fast"):
            notes[name]["kernels_ms"] = step_time.where_time_goes(step, step.prepare(batches(0)), repeats=2)
    found = [
        _row(size, shape, name, rounded[name], wall[name], statistics.median(host[name]), notes[name])
        for name in contenders
    ]
    dense = next(row for row in found if row["system"] == "fast dense")
    for row in found:
        row["flop_ratio"] = row["flops"] / dense["flops"]
        ratios = [
            statistics.median(mine) / statistics.median(theirs)
            for mine, theirs in zip(rounded[row["system"]], rounded["fast dense"], strict=True)
        ]
        row["time_ratio"] = statistics.median(ratios)
        row["time_ratio_of_rounds"] = [min(ratios), max(ratios)]
    return found


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _flops(name: str, step: EagerStep, micro_batches: list[Batch], shape: Shape) -> int:
    rows, length, micro = shape
    predictions = rows * micro * (length if name.startswith("stock") else most(length))
    return masked(step.model, predictions).step(step.shapes(micro_batches))


def _row(
    size: str, shape: Shape, name: str, rounded: list[list[float]], wall: float, host: float, notes: dict[str, Any]
) -> dict[str, Any]:
    rows, length, micro = shape
    times = sorted(second for part in rounded for second in part)
    tokens, middle = rows * length * micro, statistics.median(times)
    return {
        "model": size,
        "shape": f"{rows}x{length}x{micro}",
        "system": name,
        "median_ms": 1e3 * middle,
        "p10_ms": 1e3 * times[len(times) // 10],
        "p90_ms": 1e3 * times[-len(times) // 10],
        "steps": len(times),
        "host_ms": 1e3 * host,
        "tokens_per_second": tokens / middle,
        "wall_tokens_per_second": tokens * len(times) / wall,
        **notes,
    }


def peak_memory(size: str, shape: Shape) -> dict[str, dict[str, float]]:
    """Peak memory of the fast step alone: weights, optimizer, totals, activations and graphs."""
    rows, length, _ = shape
    batches = [[micro_batch(rows, length, 0)] * 2]

    def make(ticket: bool) -> EagerStep:
        model = model_of(size, "cuda", ticket=ticket)
        return build("fast", model, lamb(model, lr=1e-4), masked=True, precision="bf16")

    return {
        name: step_time.peak_of(lambda: make(ticket), batches)  # noqa: B023
        for name, ticket in (("dense", False), ("ticket", True))
    }


def shape_of(text: str) -> Shape:
    """Three numbers from `64x128x8`."""
    rows, length, micro = map(int, text.split("x"))
    return rows, length, micro


def main() -> None:
    """Measure, print one line a system, write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", default=["base"], choices=list(SIZES))
    parser.add_argument("--shapes", nargs="+", default=[*map(shape_of, SHAPES)], type=shape_of)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    device = torch.device(args.device)
    rate = step_time.matmul_rate(args.device)
    result: dict[str, Any] = {
        "environment": environment(device, resolve("auto", device)),
        "matmul_flops_per_second": rate,
        "rows": [],
        "peak_gib": {},
        "left_out": {},
    }
    peak = PEAK.get(result["environment"]["device"])
    for size in args.models:
        for shape in args.shapes:
            how = {"rounds": args.rounds, "steps": args.steps}
            name = "x".join(map(str, (size, *shape)))
            left_out = result["left_out"]
            rows = step_time.unless_full(lambda: measure(size, shape, args.device, **how), left_out, name)  # noqa: B023
            for row in rows or []:
                row["floor_ms"] = 1e3 * row["flops"] / rate
                row["over_floor"] = row["median_ms"] / row["floor_ms"]
                row["mfu"] = row["flops"] / (row["median_ms"] / 1e3) / peak if peak else None
                result["rows"].append(row)
                print(
                    f"{size:6s} {row['shape']:10s} {row['system']:13s} {row['median_ms']:9.2f} ms "
                    f"[{row['p10_ms']:.2f}, {row['p90_ms']:.2f}]  {row['tokens_per_second']:10,.0f} tokens/s  "
                    f"{row['time_ratio']:.2f} of dense (FLOPs {row['flop_ratio']:.2f})",
                    flush=True,
                )
            if args.device == "cuda":
                found = step_time.unless_full(lambda: peak_memory(size, shape), left_out, f"{name}, peak")  # noqa: B023
                result["peak_gib"] |= {name: found} if found else {}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
