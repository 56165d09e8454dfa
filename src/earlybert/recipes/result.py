"""What a finished run says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from ..cost import Cost, Size, sized
from ..ticket import Scores, Ticket, ticket_of
from ..ticket.files import write_atomically
from ..train.loop import Done
from ..train.steplog import append, read_steps, totals
from .bench import Bench
from .display import display, say
from .run import Run, RunFolder, environment


def summary(
    bench: Bench, run: Run, model: nn.Module, *, before: Size, engine: str, peak_memory: int | None
) -> dict[str, Any]:
    """Score, cost and size of a trained model: the content of `metrics.json`. Writes its predictions, too.

    Args:
        bench: With the validation rows.
        run: With the step log of all stages.
        model: Trained, its folder written.
        before: Of the dense model.
        engine: Name of the step that ran.
        peak_memory: Bytes on the device, of training; None where they are not measured.
    """
    config = bench.config
    stages = totals(run.steps)
    after = sized(model)
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
        "parameters": {"before": before.cost.parameters, "after": after.cost.parameters},
        **held(before, after),
        "flops_a_token": a_token(run, before.cost, after.cost),
        "disk_bytes": disk_bytes(run.model),
        "peak_memory_bytes": peak_memory,
        "profile": run.read_profile(),
    }
    if ticket is not None:
        metrics["ticket"] = widths(ticket)
    if ticket is not None and run.ticket.exists():  # else the model came cut
        metrics["ticket"] |= {
            "weights": config.weights,
            "search_ended": Scores.load(run.scores).info.get("ended"),
        }
    return {**metrics, "environment": environment(bench.device, bench.precision)}


def held(before: Size, after: Size) -> dict[str, Any]:
    """Bytes of parameters, gradients and optimizer state before and after the cut, for `metrics.json`."""
    return {"memory": {"before": asdict(before.memory), "after": asdict(after.memory)}}


def a_token(run: RunFolder[Any], before: Cost, after: Cost) -> dict[str, float] | None:
    """FLOPs of a token, forward and backward, in rows as long as those of training were on average.

    Args:
        run: With the step log.
        before: Of the dense model.
        after: Of what was trained.

    Returns:
        `length`, in tokens, `before` and `after`; None when no step was taken.
    """
    lines = [line for line in read_steps(run.steps) if line["stage"] == "train" and line["rows"]]
    if not lines:
        return None
    length = max(1, round(sum(line["tokens"] for line in lines) / sum(line["rows"] for line in lines)))
    return {"length": length, **{n: c.step([(1, length)]) / length for n, c in (("before", before), ("after", after))}}


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
    """Observer that scores the model on the way, into `evaluations.jsonl`. The last checkpoint counts all the same.

    Args:
        run: The folder, whose settings say how often.
        score: What is written.
        first: Optimizer steps done before.
        write: False only scores: a sharded model needs all processes for it.
    """

    def __init__(
        self, run: RunFolder[Any], score: Callable[[], dict[str, float]], first: int, *, write: bool = True
    ) -> None:
        self._every = run.config.eval_every
        self._score, self._run, self._write = score, run, write
        self._file = run.path / "evaluations.jsonl"
        if not write:
            return
        kept = [line for line in read_steps(self._file) if line["step"] <= first]
        write_atomically(self._file, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def __call__(self, done: Done) -> bool:
        """Score the model when it is time."""
        if done.step % self._every == 0:
            line = {"step": done.step, **self._score()}
            if not self._write:
                return False
            append(self._file, [line])
            display.emit("evaluation", **line)
            if self._run.tracker is not None:
                scores = {f"validation_{name}": value for name, value in line.items() if name != "step"}
                self._run.tracker.scalars(scores, done.step)
            if display.mode != "json":
                scores = ", ".join(f"{name} {value:.4f}" for name, value in line.items() if name != "step")
                say(f"step {done.step}: {scores}")
        return False
