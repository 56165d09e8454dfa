"""What a finished run says of itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...cost import Cost, Size, sized
from ...ticket import Scores, ticket_of
from ...train.steplog import read_steps, totals
from ..result import disk_bytes, held, widths
from ..run import Run, RunFolder, environment
from .bench import Bench


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
        "processes": bench.ranks.world,
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
