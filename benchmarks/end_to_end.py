"""A whole fine-tuning run: the stock Hugging Face Trainer against this package, on rows as long as a task's.

    python benchmarks/end_to_end.py --out benchmarks/results/end_to_end_h100.json
    python benchmarks/end_to_end.py --device cpu --model minilm --shape sst2 --steps 20 --out end_to_end_cpu.json

Random weights and rows of random tokens with the task's lengths, 32 a step. Every system trains in several rounds, in
turns, so that drift hits all alike. Steps are timed by the wall clock, data loading and logging included, behind the
first ones of a round; what those took on top (graph capture, tuning) is counted once. Totals for a run of the task's
size (dense 3 epochs; ticket 0.2 epoch of search and 2 epochs) are those times the number of steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from step_time import lengths_of, model_of
from transformers import Trainer, TrainerCallback, TrainingArguments

from earlybert.cost import count
from earlybert.recipes.run import environment
from earlybert.tasks.batches import Batch, Rows, Stream
from earlybert.ticket import Gates, HistoryWriter
from earlybert.train.clock import Clock
from earlybert.train.engine import build
from earlybert.train.heap import keep_freed
from earlybert.train.loop import loop
from earlybert.train.optimizer import adamw
from earlybert.train.precision import resolve
from earlybert.train.schedule import linear
from earlybert.train.search import Recorder
from earlybert.train.steplog import StepLog

BATCH = 32
EPOCH_ROWS = {"qqp": 363_846, "sst2": 67_349}
"""Training rows of the task."""
EPOCHS = {"dense": 3, "search": 0.2, "ticket": 2}


@dataclass
class Times:
    """Of one system: wall seconds of every steady step, and what the first ones of the first round took on top."""

    steps: list[float] = field(default_factory=list)
    warm_up: float | None = None

    def add(self, began: float, ends: list[float], warm: int) -> None:
        """A round. Of `ends`, one a step, the first `warm` are warming up."""
        steady = np.diff(ends[warm - 1 :]).tolist()
        if self.warm_up is None:
            self.warm_up = max(0.0, ends[warm - 1] - began - warm * statistics.median(steady))
        self.steps += steady

    def seconds(self, steps: float) -> float:
        """Of a run with so many steps."""
        return steps * statistics.mean(self.steps) + (self.warm_up or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """In milliseconds."""
        low, high = np.percentile(self.steps, (10, 90))
        return {
            "steps": len(self.steps),
            "mean_ms": 1000 * statistics.mean(self.steps),
            "median_ms": 1000 * statistics.median(self.steps),
            "p10_ms": 1000 * low,
            "p90_ms": 1000 * high,
            "warm_up_seconds": self.warm_up,
        }


@dataclass(frozen=True)
class Task:
    """What is trained on, where, and how long a round is."""

    rows: Rows
    model: str
    device: str
    steps: int
    warm: int

    @property
    def synchronise(self) -> Callable[[], None]:
        """Wait for the device."""
        return torch.cuda.synchronize if self.device == "cuda" else lambda: None


def rows_like(shape: str, batches: int) -> Rows:
    """Random tokens, the task's lengths."""
    random = np.random.default_rng(0)
    lengths = [length for seed in range(batches) for length in lengths_of(shape, seed)[0]]
    ids = [[101, *random.integers(1000, 30000, length - 2).tolist(), 102] for length in lengths]
    return Rows(ids, [[0] * length for length in lengths], {"labels": random.integers(0, 2, len(ids)).tolist()})


class Ends(TrainerCallback):
    """Wall-clock time at the end of every step; the device is waited for where the steady steps begin and end."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note one."""
        if state.global_step in (self.task.warm, state.max_steps):
            self.task.synchronise()
        self.ends.append(time.perf_counter())


def trainer(task: Task, times: Times, *, bf16: bool, width: int | None) -> None:
    """A round of the stock Trainer with fused AdamW; padding to `width`, or to the longest row."""
    ends = Ends(task)

    def collate(numbers: list[Any]) -> Batch:
        batch = task.rows.batch([number["row"] for number in numbers])
        if width is not None:
            extra = width - batch["input_ids"].shape[1]
            batch = {k: torch.nn.functional.pad(v, (0, extra)) if v.dim() == 2 else v for k, v in batch.items()}
        return batch

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=task.steps,
            bf16=bf16,
            optim="adamw_torch_fused",
            learning_rate=2e-5,
            report_to=[],
            save_strategy="no",
            logging_steps=500,
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=task.device == "cpu",
        )
        data: Any = [{"row": number} for number in range(len(task.rows))]
        model = model_of(task.model, task.device, ticket=False, qa=False)
        runner = Trainer(model, arguments, collate, data, callbacks=[ends])
        task.synchronise()
        began = time.perf_counter()
        runner.train()
    times.add(began, ends.ends, task.warm)


def timed(batches: Iterable[Any], task: Task, ends: list[float]) -> Iterator[Any]:
    """The same batches; when the next is asked for, a step has ended."""
    for number, batch in enumerate(batches):
        if number:
            if number in (task.warm, task.steps):
                task.synchronise()
            ends.append(time.perf_counter())
        yield batch


def ours(task: Task, times: Times, *, ticket: bool = False, search: bool = False) -> None:
    """A round of the fast step, with everything that a run of this package does around it."""
    model = model_of(task.model, task.device, ticket=ticket, qa=False)
    gates = Gates(model).attach() if search else None
    optimizer = adamw(model, lr=2e-5, gates=gates)
    device = torch.device(task.device)
    options: dict[str, Any] = {"gates": gates, "l1": (1e-4, 1e-4)} if gates else {}
    step = build("fast", model, optimizer, precision=resolve("auto", device), **options)
    stream = Stream(task.rows, batch_size=BATCH)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(step.device)
        log = StepLog(
            Path(folder) / "steps", "train", step=step, cost=count(model), clock=clock, first=0, lr=2e-5, every=50
        )
        observers: list[Any] = [log]
        writer = HistoryWriter(Path(folder) / "history.bin", gates) if gates is not None else None
        if writer is not None:
            observers.append(Recorder(writer))
        task.synchronise()
        began = time.perf_counter()
        batches = timed(stream.starting_at(0), task, ends)
        loop(step, batches, first=0, steps=task.steps, schedule=linear(task.steps), clock=clock, observers=observers)
        log.flush()
        task.synchronise()
        ends.append(time.perf_counter())
        if writer is not None:
            writer.close()
    times.add(began, ends[: task.steps], task.warm)


def systems(device: str) -> dict[str, Callable[[Task, Times], None]]:
    """Each contender, by name; where there is bf16, and on a GPU, stock runs take it as those of the package do."""
    half = resolve("auto", torch.device(device)) == "bf16"
    precise = {"stock Trainer fp32, padded to 128": lambda *to: trainer(*to, bf16=False, width=128)}
    stock: dict[str, Callable[[Task, Times], None]] = {
        **(precise if device == "cpu" or not half else {}),
        **({"stock Trainer, padded to 128": lambda *to: trainer(*to, bf16=True, width=128)} if half else {}),
        "stock Trainer, padded to longest": lambda *to: trainer(*to, bf16=half, width=None),
    }
    return {
        **stock,
        "fast dense": ours,
        "fast ticket": lambda *to: ours(*to, ticket=True),
        "fast search": lambda *to: ours(*to, search=True),
    }


def summary(times: dict[str, Times], shape: str) -> dict[str, Any]:
    """Hours of a whole run with each system, and how often a ticket's run fits into it."""
    epoch = EPOCH_ROWS[shape] / BATCH
    hours = {
        name: found.seconds(EPOCHS["dense"] * epoch) / 3600
        for name, found in times.items()
        if name not in ("fast ticket", "fast search")
    }
    whole = times["fast search"].seconds(EPOCHS["search"] * epoch) + times["fast ticket"].seconds(
        EPOCHS["ticket"] * epoch
    )
    hours["fast ticket, search included"] = whole / 3600
    dense, small, search = (statistics.median(times[f"fast {name}"].steps) for name in ("dense", "ticket", "search"))
    return {
        "hours": hours,
        "over_ticket_run": {name: 3600 * value / whole for name, value in hours.items()},
        "ticket_over_dense_step": small / dense,
        "search_over_dense_step": search / dense,
    }


def main() -> None:
    """Measure and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", choices=("minilm", "base", "large"), default="base")
    parser.add_argument("--shape", choices=tuple(EPOCH_ROWS), default="qqp")
    parser.add_argument("--steps", type=int, default=200, help="of a round")
    parser.add_argument(
        "--warm", type=int, help="first steps of a round that are warming up; a tenth on a CPU, else half"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    kept = args.device == "cpu" and keep_freed()  # as runs on a CPU have it; the stock Trainer here has it, too
    warm = args.warm or max(2, args.steps // (10 if args.device == "cpu" else 2))
    task = Task(rows_like(args.shape, args.steps), args.model, args.device, args.steps, warm)
    contenders = systems(args.device)
    times = {name: Times() for name in contenders}
    turns = [name for number in range(args.rounds) for name in (list(contenders), list(contenders)[::-1])[number % 2]]
    for name in track(turns, "systems in turns"):
        contenders[name](task, times[name])
    result = {
        "environment": environment(torch.device(args.device), resolve("auto", torch.device(args.device))),
        "keeps_freed_memory": kept,
        "model": args.model,
        "shape": args.shape,
        "rows_a_step": BATCH,
        "rounds": args.rounds,
        "systems": {name: found.to_dict() for name, found in times.items()},
        **summary(times, args.shape),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({**result, "environment": None}, indent=1))


if __name__ == "__main__":
    main()
