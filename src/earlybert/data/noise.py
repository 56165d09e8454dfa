"""Random numbers that are a function of where they are used: no state, the same on every rank, any place reachable."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Number = int | NDArray[np.integer]
STEP = np.uint64(0x9E3779B97F4A7C15)


def bits(*where: Number) -> NDArray[np.uint64]:
    """64 random bits for every coordinate: splitmix64 (Steele et al. 2014) chained over the coordinates.

    Args:
        *where: Integers or integer arrays that broadcast together: seed, epoch, example, position ...
    """
    state = np.zeros(1, dtype=np.uint64)
    for part in where:
        state = _mix(state + STEP + _mix(np.atleast_1d(np.asarray(part)).astype(np.uint64) + STEP))
    return state


def uniform(*where: Number) -> NDArray[np.float64]:
    """A number in [0, 1) for every coordinate."""
    return (bits(*where) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(limit: Number, *where: Number) -> NDArray[np.int64]:
    """An integer from 0 up to, not including, `limit` for every coordinate."""
    return (uniform(*where) * limit).astype(np.int64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
