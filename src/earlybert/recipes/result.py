"""What a finished run says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..cost import count
from ..ticket import Scores, Ticket, ticket_of
from ..ticket.files import write_atomically
from ..train.loop import Done
from ..train.steplog import append, read_steps, totals
from .bench import Bench
from .progress import say
from .run import Run, RunFolder, environment


def summary(bench: Bench, run: Run, model: nn.Module, *, parameters_before: int, engine: str) -> dict[str, Any]:
    """Score, cost and size of a trained model: the content of `metrics.json`. Writes its predictions, too.

    Args:
        bench: With the validation rows.
        run: With the step log of all stages.
        model: Trained, its folder written.
        parameters_before: Parameters of the dense model.
        engine: Name of the step that ran.
    """
    config = bench.config
    stages = totals(run.steps)
    cost = count(model)
    ticket = ticket_of(model)
    predictions = bench.predict(model)
    predictions.save(run.predictions)
    metrics: dict[str, Any] = {
        "task": bench.task.name,
        "model": config.model,
        "method": config.method,
        "score": predictions.score(),
        "headline": bench.task.metrics[0],
        "train_rows": len(bench.task.train),
        "validation_rows": len(bench.task.validation),
        "engine": engine,
        "rows_per_step": config.batch_size * config.accumulate,
        "stages": {name: sums.to_dict() for name, sums in stages.items()},
        "seconds": sum(sums.seconds for sums in stages.values()),
        "flops": sum(sums.flops for sums in stages.values()),
        "parameters": {"before": parameters_before, "after": cost.parameters},
        "disk_bytes": disk_bytes(run.model),
        "peak_memory_bytes": torch.cuda.max_memory_allocated(bench.device) if bench.device.type == "cuda" else None,
    }
    if ticket is not None:
        metrics["ticket"] = widths(ticket)
    if ticket is not None and run.ticket.exists():  # else the model came cut
        metrics["ticket"] |= {
            "weights": config.weights,
            "search_ended": Scores.load(run.scores).info.get("ended"),
        }
    return {**metrics, "environment": environment(bench.device, bench.precision)}


def widths(ticket: Ticket) -> dict[str, Any]:
    """What a ticket keeps in each layer, and by what margin."""
    return {
        "heads_kept": [len(kept) for kept in ticket.heads],
        "neurons_kept": [len(kept) for kept in ticket.neurons],
        "margin": dict(ticket.drawn).get("margin"),
    }


def disk_bytes(folder: Path) -> int:
    """Size of the weights in a model folder, in bytes."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


class Evaluations:
    """Observer that scores the model on the way, into `evaluations.jsonl`. The last checkpoint counts all the same."""

    def __init__(self, run: RunFolder[Any], score: Callable[[], dict[str, float]], first: int) -> None:
        self._every = run.config.eval_every
        self._score = score
        self._file = run.path / "evaluations.jsonl"
        kept = [line for line in read_steps(self._file) if line["step"] <= first]
        write_atomically(self._file, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def __call__(self, done: Done) -> bool:
        """Score the model when it is time."""
        if done.step % self._every == 0:
            line = {"step": done.step, **self._score()}
            append(self._file, [line])
            say(
                f"step {done.step}: "
                + ", ".join(f"{name} {value:.4f}" for name, value in line.items() if name != "step")
            )
        return False
