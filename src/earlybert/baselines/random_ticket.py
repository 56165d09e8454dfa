"""Random tickets: the same budget, no search (the paper's random baseline, Tables 1 and 2)."""

from __future__ import annotations

import numpy as np
import torch

from ..anatomy import Anatomy
from ..ticket import Scores, Ticket
from ..ticket.ticket import Layers

HEADS, NEURONS = 0, 1
"""Streams of the seed: heads and neurons are drawn independently."""


def scores(anatomy: Anatomy, seed: int) -> Scores:
    """Uniform random importance for every head and neuron, to draw from with any budget.

    Args:
        anatomy: Of a model, whole or cut before.
        seed: Of the numbers.
    """
    shapes = {HEADS: (len(anatomy.layers), anatomy.num_heads), NEURONS: (len(anatomy.layers), anatomy.num_neurons)}
    drawn = {what: np.random.default_rng([seed, what]).random(shape) for what, shape in shapes.items()}
    heads, neurons = (
        [torch.from_numpy(row)[list(units)] for row, units in zip(drawn[what], left, strict=True)]
        for what, left in ((HEADS, anatomy.left.heads), (NEURONS, anatomy.left.neurons))
    )
    return Scores.of_units(anatomy, heads, neurons, source="random", seed=seed)


def like(ticket: Ticket, seed: int) -> Ticket:
    """A random ticket with another one's widths, layer by layer.

    What the ticket gains over this one is due to *which* units it keeps, not to how many a layer.
    """
    return Ticket(
        heads=_as_many(ticket.heads, ticket.num_heads, [seed, HEADS]),
        neurons=_as_many(ticket.neurons, ticket.num_neurons, [seed, NEURONS]),
        model_type=ticket.model_type,
        num_heads=ticket.num_heads,
        num_neurons=ticket.num_neurons,
        drawn={"source": "random, widths of another ticket", "seed": seed, "margin": {"heads": None, "neurons": None}},
    )


def _as_many(layers: Layers, units: int, seed: list[int]) -> Layers:
    random = np.random.default_rng(seed)
    return tuple(tuple(sorted(random.choice(units, size=len(kept), replace=False).tolist())) for kept in layers)
