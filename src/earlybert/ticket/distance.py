"""How much two masks differ (Sec. 3.3, Fig. 1)."""

from __future__ import annotations

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
