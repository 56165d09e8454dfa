"""What a recipe does beside its plain steps: scoring, refitting and matching, timed before a run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from torch import nn

from ...cost import count
from ...train.clock import Clock
from .bench import SHARED_ORDER, Bench
from .plan import Plan
from .scoring import Scored, batches_scored, sensitivity
from .stages import matched_steps, next_batches, refitted

TIMED = 4
"""Batches whose scoring is timed; the others take as long in the median."""


@dataclass(frozen=True)
class Beside:
    """One such thing, once a run."""

    name: str
    seconds: float
    flops: float


def beside(
    bench: Bench, lengths: Plan, times: Mapping[str, list[float]], dense: nn.Module, small: nn.Module
) -> list[Beside]:
    """Time what the settings ask for; nothing where they ask for none of it.

    Of several cuts the first alone counts.

    Args:
        bench: With the data and the settings.
        lengths: Of the run.
        times: Seconds of steps in turns, `matched` among them where hidden states are matched.
        dense: Not changed.
        small: Cut from it; refitted where that is asked for.
    """
    config, found = bench.config, list[Beside]()
    kind = config.method.removesuffix("_searched")
    if kind in ("taylor", "fisher", "surgeon"):
        found.append(_scoring(bench, dense, cast(Scored, kind)))
    if config.refit:
        clock = Clock(bench.device)
        batches = next_batches(bench, SHARED_ORDER, 0)
        with clock:
            _, flops = refitted(small, dense, batches)
        found.append(Beside(f"refitting on {len(batches)} batches", sum(clock.read()), flops))
    if config.match:
        steps = matched_steps(config, lengths.train - (lengths.search if config.weights == "keep" else 0))
        more = statistics.median(times["matched"]) - statistics.median(times["ticket"])
        shapes = bench.stream(SHARED_ORDER).shapes(0, padded=bench.engine == "eager")
        found.append(Beside(f"matching in {steps:,} steps", steps * more, steps * count(dense).forward(shapes)))
    return found


def _scoring(bench: Bench, model: nn.Module, kind: Scored) -> Beside:
    count = batches_scored(bench, SHARED_ORDER)
    few = replace(bench, config=replace(bench.config, score_batches=min(count, TIMED)))
    _, lines = sensitivity(few, model, kind, 0, SHARED_ORDER)
    each = lines[:-1] or lines  # what is made of all of them is part of the last
    rest = count - len(lines)
    seconds, flops = zip(*lines, strict=True)
    return Beside(
        f"scoring {count} batches",
        sum(seconds) + rest * statistics.median(s for s, _ in each),
        sum(flops) + rest * statistics.fmean(f for _, f in each),
    )
