"""The dense rivals: the full model, stopped where the ticket's cost is used up (Table 7)."""

from __future__ import annotations

from collections.abc import Mapping

from ..cost import Cost
from ..tasks.batches import Stream


def steps_within(flops: int, cost: Cost, stream: Stream, *, padded: bool) -> int:
    """Optimizer steps that the dense model can take for so many FLOPs, at least one.

    Args:
        flops: What the ticket cost, search and training.
        cost: Of the dense model.
        stream: The batches that it would train on.
        padded: Whether padding was computed, and so counted.
    """
    steps = 0
    while (flops := flops - cost.step(stream.shapes(steps, padded=padded))) >= 0:
        steps += 1
    return max(1, steps)


def steps_in_time(taken: Mapping[str, int], other: float, *, seconds: Mapping[str, float]) -> int:
    """Optimizer steps that the dense model can take in the time of a ticket, at least one.

    Args:
        taken: Steps of the ticket's run, by kind: `search`, `ticket` and more.
        other: Seconds of scoring, drawing and cutting.
        seconds: Of a step of each kind taken, and of a `dense` step, measured in turns.
    """
    spent = sum(steps * seconds[kind] for kind, steps in taken.items() if steps) + other
    return max(1, int(spent / seconds["dense"]))
