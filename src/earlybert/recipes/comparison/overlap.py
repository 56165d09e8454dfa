"""Do different seeds find the same ticket? Overlap between seeds, beside what chance would give."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ...report.sheet import Sheet
from ...ticket import Ticket
from ...ticket.ticket import Layers
from .comparison import Comparison, cell_name


@dataclass(frozen=True)
class Overlap:
    """Mean over all pairs of tickets."""

    heads: float
    """Share of the heads kept by one that the other keeps, too."""
    heads_chance: float
    """The same for random heads of the same widths, layer by layer."""
    neurons: float
    neurons_chance: float


def overlap(tickets: Sequence[Ticket]) -> Overlap:
    """Of tickets for one model.

    Raises:
        ValueError: There are fewer than two.
    """
    pairs = list(combinations(tickets, 2))
    if not pairs:
        raise ValueError("an overlap needs two tickets.")
    heads = [_shared(a.heads, b.heads, a.num_heads) for a, b in pairs]
    neurons = [_shared(a.neurons, b.neurons, a.num_neurons) for a, b in pairs]
    return Overlap(*(statistics.fmean(values) for kind in (heads, neurons) for values in zip(*kind, strict=True)))


def _shared(ours: Layers, theirs: Layers, units: int) -> tuple[float, float]:
    """Units in both, and how many that would be by chance, of the smaller ticket's."""
    both = sum(len(set(a) & set(b)) for a, b in zip(ours, theirs, strict=True))
    chance = sum(len(a) * len(b) / units for a, b in zip(ours, theirs, strict=True))
    smaller = min(sum(map(len, ours)), sum(map(len, theirs)))
    return both / smaller, chance / smaller


def overlap_sheet(comparison: Comparison, folder: Path) -> Sheet | None:
    """For every method that has a ticket and two seeds; None where there is none."""
    rows: list[list[str]] = []
    for row in comparison.methods:
        found: list[Overlap] = []
        for task in comparison.tasks:
            files = [folder / cell_name(task, row, seed) / "ticket.json" for seed in comparison.seeds]
            tickets = [Ticket.load(file) for file in files if file.exists()]
            if len(tickets) > 1:
                found.append(overlap(tickets))
        if found:
            mean = [statistics.fmean(values) for values in zip(*(vars(each).values() for each in found), strict=True)]
            heads, neurons = mean[:2], mean[2:]
            rows.append([row, *(f"{100 * kept:.1f} % ({100 * chance:.1f} %)" for kept, chance in (heads, neurons))])
    if not rows:
        return None
    note = (
        "Share of the units kept with one seed that another seed keeps, too; in brackets, by chance at the same widths."
    )
    return Sheet("Overlap of tickets between seeds", ("method", "heads", "neurons"), rows, [note])
