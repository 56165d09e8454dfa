"""What is left of a model that was cut before: which heads and neurons of the whole model its layers have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

Units = Sequence[int]
"""Indices in the whole model, in order."""


@dataclass(frozen=True)
class Left:
    """The units of each layer by their indices in the whole model, which they keep however often it is cut."""

    heads: tuple[Units, ...]
    neurons: tuple[Units, ...]
    num_heads: int
    """Heads per layer of the whole model."""
    num_neurons: int
    """Intermediate neurons per layer of the whole model."""
    known: bool = True
    """False for layers of different sizes where nothing says which units they have."""

    @property
    def all(self) -> bool:
        """Whether nothing is gone."""
        return all(len(units) == self.num_heads for units in self.heads) and all(
            len(units) == self.num_neurons for units in self.neurons
        )


def left_of(model: nn.Module, sizes: Sequence[tuple[int, int]]) -> Left:
    """Read what is left from the live sizes, and from the ticket that the configuration of a cut model holds.

    Args:
        model: With that configuration.
        sizes: For each layer, its heads and neurons.
    """
    heads, neurons = tuple(range(size) for size, _ in sizes), tuple(range(size) for _, size in sizes)
    most = max(map(len, heads)), max(map(len, neurons))
    config: Any = model.config
    entry = getattr(config, "earlybert", None)
    if not entry:
        return Left(heads, neurons, *most, known=len(set(sizes)) == 1)
    try:
        ticket = entry["ticket"]
        whole = ticket["num_heads"], ticket["num_neurons"]
        kept = [tuple(map(tuple, ticket[what])) for what in ("heads", "neurons")]
    except (LookupError, TypeError):
        return Left(heads, neurons, *most, known=False)
    if set(sizes) == {whole}:  # about to be cut to that ticket
        return Left(heads, neurons, *whole)
    if [(len(a), len(b)) for a, b in zip(*kept)] != list(sizes):
        return Left(heads, neurons, *most, known=False)
    return Left(kept[0], kept[1], *whole)


def places(present: Units, units: Units) -> tuple[int, ...]:
    """Where some of the units present lie among them.

    Raises:
        KeyError: One is not present.
    """
    if isinstance(present, range):  # all of a whole layer
        return tuple(units)
    where = {unit: place for place, unit in enumerate(present)}
    return tuple(where[unit] for unit in units)
