"""A whole fine-tuning run: the stock Hugging Face Trainer against this package, on rows as long as QQP's.

    python benchmarks/end_to_end.py --out benchmarks/results/end_to_end_h100.json

BERT-base with random weights, rows of random tokens with QQP's lengths, 32 a step. Steps are timed by the wall clock,
data loading, logging and graph capture included, over a few hundred of them; totals for a run of QQP's size (363,846
rows; dense 3 epochs; ticket 0.2 epoch of search and 2 epochs) are those times the number of steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_time import lengths_of, model_of
from transformers import Trainer, TrainerCallback, TrainingArguments

from earlybert.cost import count
from earlybert.recipes.run import environment
from earlybert.tasks.batches import Rows, Stream
from earlybert.ticket import Gates, HistoryWriter
from earlybert.train.clock import Clock
from earlybert.train.engine import build
from earlybert.train.loop import loop
from earlybert.train.optimizer import adamw
from earlybert.train.schedule import linear
from earlybert.train.search import Recorder
from earlybert.train.steplog import StepLog

QQP_ROWS, BATCH = 363_846, 32


def rows_like_qqp(count_: int) -> Rows:
    """Random tokens, QQP's lengths."""
    random = np.random.default_rng(0)
    lengths = [length for seed in range(count_ // 32) for length in lengths_of("qqp", seed)[0]]
    ids = [[101, *random.integers(1000, 30000, length - 2).tolist(), 102] for length in lengths]
    return Rows(ids, [[0] * length for length in lengths], {"labels": random.integers(0, 2, len(ids)).tolist()})


class Times(TrainerCallback):
    """Wall-clock time at the end of every step; the device is not waited for, as in real training."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note one."""
        if state.global_step in (20, state.max_steps):
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def trainer_step(rows: Rows, device: str, steps: int, *, width: int | None) -> float:
    """Seconds a step of the stock Trainer: bf16, fused AdamW; padding to `width`, or to the longest row."""
    times = Times()

    def collate(numbers: list[Any]) -> dict[str, torch.Tensor]:
        batch = rows.batch([number["row"] for number in numbers])
        if width is not None:
            extra = width - batch["input_ids"].shape[1]
            batch = {k: torch.nn.functional.pad(v, (0, extra)) if v.dim() == 2 else v for k, v in batch.items()}
        return batch

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            bf16=True,
            optim="adamw_torch_fused",
            learning_rate=2e-5,
            report_to=[],
            save_strategy="no",
            logging_steps=500,
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=device == "cpu",
        )
        data: Any = [{"row": number} for number in range(len(rows))]
        Trainer(model_of("base", device, ticket=False, qa=False), arguments, collate, data, callbacks=[times]).train()
    return (times.ends[-1] - times.ends[19]) / (len(times.ends) - 20)


def our_step(rows: Rows, device: str, steps: int, *, ticket: bool, search: bool) -> dict[str, float]:
    """Wall seconds a step once warm, what warming up took on top, seconds a step by the clock, FLOPs a step."""
    model = model_of("base", device, ticket=ticket, qa=False)
    gates = Gates(model).attach() if search else None
    optimizer = adamw(model, lr=2e-5, gates=gates)
    step = build("fast", model, optimizer, precision="bf16", gates=gates, l1=(1e-4, 1e-4) if gates else (0.0, 0.0))
    stream = Stream(rows, batch_size=BATCH)
    clock = Clock(step.device)
    with tempfile.TemporaryDirectory() as folder:
        log = StepLog(
            Path(folder) / "steps", "train", step=step, cost=count(model), clock=clock, first=0, lr=2e-5, every=50
        )
        observers: list[Any] = [log]
        writer = HistoryWriter(Path(folder) / "history.bin", gates) if gates is not None else None
        if writer is not None:
            observers.append(Recorder(writer))
        began = time.perf_counter()
        half = steps // 2
        options: dict[str, Any] = {"schedule": linear(steps), "clock": clock, "observers": observers}
        loop(step, stream.starting_at(0), first=0, steps=half, **options)
        log.flush()
        middle = time.perf_counter()
        loop(step, stream.starting_at(half), first=half, steps=steps, **options)
        log.flush()
        wall = (time.perf_counter() - middle) / (steps - half)
        if writer is not None:
            writer.close()
        lines = [json.loads(line) for line in (Path(folder) / "steps").read_text().splitlines()]
    return {
        "wall_step": wall,
        "warm_up_seconds": middle - began - half * wall,
        "step": statistics.median(line["seconds"] for line in lines),
        "flops": round(statistics.mean(line["flops"] for line in lines)),
    }


def main() -> None:
    """Measure and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = "cuda"
    rows = rows_like_qqp(args.steps * BATCH)
    per_epoch = QQP_ROWS / BATCH

    seconds: dict[str, dict[str, float]] = {}
    for name, width in (("stock Trainer, padded to 128", 128), ("stock Trainer, padded to longest", None)):
        wall = trainer_step(rows, device, min(args.steps, 120), width=width)
        seconds[name] = {"wall_step": wall, "total_hours": 3 * per_epoch * wall / 3600}
    for name, ticket, search in (
        ("fast dense", False, False),
        ("fast ticket", True, False),
        ("fast search", False, True),
    ):
        seconds[name] = our_step(rows, device, args.steps, ticket=ticket, search=search)
    dense, small, searching = (seconds[f"fast {name}"] for name in ("dense", "ticket", "search"))
    dense["total_hours"] = (3 * per_epoch * dense["wall_step"] + dense["warm_up_seconds"]) / 3600
    total = 0.2 * per_epoch * searching["wall_step"] + 2 * per_epoch * small["wall_step"]
    total += searching["warm_up_seconds"] + small["warm_up_seconds"]
    small["total_hours"] = total / 3600
    result = {
        "environment": environment(torch.device(device), "bf16"),
        "steps_timed": args.steps,
        "systems": seconds,
        "trainer_over_earlybert": {
            name: entry["total_hours"] * 3600 / total for name, entry in seconds.items() if "Trainer" in name
        },
        "search_over_dense_step": seconds["fast search"]["step"] / seconds["fast dense"]["step"],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({**result, "environment": None}, indent=1))


if __name__ == "__main__":
    main()
