"""How much two masks differ (Sec. 3.3, Fig. 1)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Distance:
    """Normalised Hamming distance between two masks: 0 is the same, 1 is every bit flipped."""

    per_layer: NDArray[np.float64]
    """Share of each layer's bits that differ, `[layers]`."""

    @property
    def overall(self) -> float:
        """Share of all bits that differ. Layers are of one size, so this is the mean over layers."""
        return float(self.per_layer.mean())


def mask_distance(a: ArrayLike, b: ArrayLike) -> Distance:
    """Normalised Hamming distance between two boolean masks of shape `[layers, units]` (Fig. 1).

    Raises:
        ValueError: The shapes differ or are not two-dimensional.
    """
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"masks must be [layers, units] and alike, got {first.shape} and {second.shape}")
    return Distance((first != second).mean(axis=1))


def jaccard(a: Collection[int], b: Collection[int]) -> float:
    """Units in both over units in either, of two sets that are not both empty (Jaccard 1912)."""
    both = len(set(a) & set(b))
    return both / (len(a) + len(b) - both)


def jaccard_by_chance(first: int, second: int, units: int) -> float:
    """What `jaccard` is on average for random sets of these sizes out of `units`: units in both are hypergeometric."""

    def ways(whole: int, part: int) -> float:
        return math.lgamma(whole + 1) - math.lgamma(part + 1) - math.lgamma(whole - part + 1)

    total = ways(units, second)
    return sum(
        math.exp(ways(first, both) + ways(units - first, second - both) - total) * both / (first + second - both)
        for both in range(max(0, first + second - units), min(first, second) + 1)
    )
