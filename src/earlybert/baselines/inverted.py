"""The inverted ticket: the units that the search found least important, as many as the ticket keeps."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ..ticket import Scores


def scores(found: Scores) -> Scores:
    """Scores in the opposite order."""
    return replace(
        found, heads=_upside_down(found.heads), neurons=_upside_down(found.neurons), source=f"inverted {found.source}"
    )


def _upside_down(vectors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    highest = max(float(vector.abs().max()) for vector in vectors)
    return tuple(highest - vector.abs() for vector in vectors)
