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


def steps_in_time(ticket_steps: int, search_steps: int, other: float, *, seconds: Mapping[str, float]) -> int:
    """Optimizer steps that the dense model can take in the time of a ticket, at least one.

    Args:
        ticket_steps: Steps of the ticket's training.
        search_steps: Steps of its search.
        other: Seconds of scoring, drawing and cutting.
        seconds: Of a `ticket`, a `search` and a `dense` step, measured in turns.
    """
    spent = ticket_steps * seconds["ticket"] + search_steps * seconds["search"] + other
    return max(1, int(spent / seconds["dense"]))
