"""What a finished pre-training run says of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from ...cost import PEAK, Size, sized
from ...ticket import Scores, ticket_of
from ...train.steplog import read_steps, totals
from ..result import disk_bytes, held, widths
from ..run import RunFolder, environment
from .bench import Bench


def summary(
    bench: Bench,
    run: RunFolder[Any],
    model: nn.Module,
    *,
    scores: Sequence[dict[str, float]],
    before: Size,
    engine: str,
    elapsed: float,
    peak: int | None,
) -> dict[str, Any]:
    """Score, cost, speed and size of a trained model: the content of `metrics.json`.

    Args:
        bench: With the settings.
        run: With the step log of all stages, and the model folder.
        model: Trained.
        scores: On held-out documents, at the length of each phase.
        before: Of the dense model.
        engine: Name of the step that ran.
        elapsed: Seconds of wall-clock time that training took, search included.
        peak: Bytes on the first process's device, of training; None where they are not measured.
    """
    config = bench.config
    world = bench.ranks.world
    environs = environment(bench.device, bench.precision)
    stages = totals(run.steps)
    ticket = ticket_of(model)
    after = sized(model)
    metrics: dict[str, Any] = {
        "corpus": bench.text,
        "method": config.method,
        "score": scores[0],
        "engine": engine,
        "processes": world,
        "stages": {name: sums.to_dict() for name, sums in stages.items()},
        "speed": speeds(run, PEAK.get(environs["device"]) if bench.precision == "bf16" else None, world),
        "seconds": sum(sums.seconds for sums in stages.values()),
        "elapsed": elapsed,
        # The first process's rows stand for all; where padding is not computed they differ a little.
        "flops": world * sum(sums.flops for sums in stages.values()),
        "parameters": {"before": before.cost.parameters, "after": after.cost.parameters},
        **held(before, after),
        "disk_bytes": disk_bytes(run.model),
        "peak_memory_bytes": peak,
        "profile": run.read_profile(),
    }
    if len(scores) > 1:
        metrics["score_at_second_length"] = scores[1]
    if ticket is not None:
        metrics["ticket"] = {**widths(ticket), "source": Scores.load(run.scores).source}
    return {**metrics, "environment": environs}


def speeds(run: RunFolder[Any], peak: float | None, world: int = 1) -> dict[str, dict[str, float | None]]:
    """Tokens and FLOPs a second of search and training, over step times alone.

    Tokens are those computed on: the fast step computes no padding, the eager one does.

    Args:
        run: With the step log.
        peak: FLOP/s that one device could do; None when it is not known.
        world: Processes; the step log is that of one, and all do as much.

    Returns:
        For each stage `tokens_per_second`, `flops_per_second`, and `mfu`, the share of the peak.
    """
    sums: dict[str, Counter[str]] = {}
    for line in read_steps(run.steps):
        if line["tokens"]:
            part = sums.setdefault(line["stage"], Counter())
            for name in ("tokens", "flops", "seconds"):
                part[name] += line[name]
    return {
        stage: {
            "tokens_per_second": world * part["tokens"] / part["seconds"],
            "flops_per_second": world * part["flops"] / part["seconds"],
            "mfu": part["flops"] / part["seconds"] / peak if peak else None,
        }
        for stage, part in sums.items()
    }
