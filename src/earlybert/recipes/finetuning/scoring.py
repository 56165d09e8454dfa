"""Scores of a model as it is, from training batches and without an optimizer step."""

from __future__ import annotations

from typing import Literal

from torch import nn

from ...baselines.sensitivity import Kind, Sensitivity
from ...baselines.surgeon import Surgeon
from ...cost import count
from ...tasks.batches import shape_of
from ...ticket import Scores
from ...train.clock import Clock
from ...train.step import to_device
from .bench import Bench

Scored = Kind | Literal["surgeon"]


def batches_scored(bench: Bench, order: int) -> int:
    """Batches that scores are taken from: `score_batches`, but an epoch at most."""
    return min(bench.config.score_batches, bench.stream(order).steps_per_epoch * bench.config.accumulate)


def sensitivity(
    bench: Bench, model: nn.Module, kind: Scored, first: int, order: int
) -> tuple[Scores, list[tuple[float, int]]]:
    """Score a model on the `score_batches` that come next.

    Args:
        bench: With the data and the settings.
        model: Whole or cut; not changed.
        kind: What the scores are.
        first: Optimizer steps whose batches are behind it.
        order: Which of the two data orders.

    Returns:
        Scores, and the seconds and FLOPs of each batch they were taken from; what is made of them counts with the last.
    """
    scorer = Surgeon(model, bench.precision) if kind == "surgeon" else Sensitivity(model, kind, bench.precision)
    cost = count(model)
    clock, flops = Clock(bench.device), list[int]()
    batches = (batch for step in bench.stream(order).starting_at(first) for batch in step)
    enough = batches_scored(bench, order)
    for batch in batches:
        prepared = to_device(batch, bench.device)
        with clock:
            scorer.add(prepared)
        flops.append(scorer.flops(cost, shape_of(batch), int(batch["attention_mask"].sum())))
        if len(flops) >= enough:
            break
    with clock:
        scores = scorer.scores(bench.config.seed)
    *seconds, last = clock.read()
    seconds[-1] += last
    flops[-1] += scorer.scores_flops() if isinstance(scorer, Surgeon) else 0
    return scores, list(zip(seconds, flops, strict=True))
