"""When the ticket has emerged and the search may end (Sec. 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..anatomy import Refused
from .distance import mask_distance
from .draw import Mask, Scope, keep_mask
from .gates import Gates

CHECKS = 20
"""Checks in a search that runs to its cap, unless told otherwise: one every 5 % of it."""
FEWEST_BETWEEN = 20
"""But no fewer steps between two: masks five steps apart look alike while they are still random (docs/stopping.md)."""


@dataclass(frozen=True)
class Settled:
    """End a search when checks a fair distance apart have drawn nearly the same mask.

    The masks compared are those that would be drawn, unaligned. Neighbouring steps always look
    alike and the first steps are all ties, so checks are `every` steps apart and none counts before
    `min_steps`. How the defaults were measured is in docs/stopping.md.

    Raises:
        Refused: A setting is out of range.
    """

    heads: int | float = 1 / 3
    """Heads removed, as in `draw`."""
    neurons: int | float = 0.4
    """Neurons removed, as in `draw`."""
    heads_scope: Scope = "layer"
    """As in `draw`."""
    neurons_scope: Scope = "global"
    """As in `draw`."""
    every: int | None = None
    """Optimizer steps between checks; when not given 5 % of the cap, but at least 20."""
    window: int = 3
    """Distances in a row, each between neighbouring checks, that have to be small."""
    threshold: float = 0.08
    """Share of the whole model's bits that may differ and still count as the same mask, for heads and for neurons."""
    min_steps: int = 60
    """Optimizer steps before the first check."""

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise Refused(f"every must be at least 1 step, got {self.every}.")
        if self.window < 1 or self.min_steps < 0 or not 0 <= self.threshold <= 1:
            raise Refused(
                "the stop rule needs window >= 1, min_steps >= 0 and a threshold in [0, 1], got "
                f"{self.window}, {self.min_steps} and {self.threshold}."
            )

    def watch(self, cap: int) -> Watch:
        """The rule at work on one search of at most `cap` steps."""
        return Watch(self, self.every or max(FEWEST_BETWEEN, math.ceil(cap / CHECKS)))


class Watch:
    """Holds the last mask and the run of distances of one search.

    Attributes:
        every: Steps between checks.
        distances: `(step, heads, neurons)` for every pair of neighbouring checks so far.
        settled: Whether the last check found the mask settled.
    """

    def __init__(self, rule: Settled, every: int) -> None:
        self.rule = rule
        self.every = every
        self.distances: list[tuple[int, float, float]] = []
        self.settled = False
        self._last: tuple[Mask, Mask] | None = None

    def due(self, step: int) -> bool:
        """Whether `step` finished steps ask for a check."""
        return step >= max(1, self.rule.min_steps) and step % self.every == 0

    def check(self, step: int, heads: NDArray[np.float32], neurons: NDArray[np.float32]) -> bool:
        """Compare with the last check; true when the mask has settled.

        Args:
            step: Optimizer steps done.
            heads: Coefficients `[layers, heads]`.
            neurons: Coefficients `[layers, neurons]`.
        """
        rule, last = self.rule, self._last
        now = (
            keep_mask(np.abs(heads.astype(np.float64)), rule.heads, scope=rule.heads_scope, what="heads"),
            keep_mask(np.abs(neurons.astype(np.float64)), rule.neurons, scope=rule.neurons_scope, what="neurons"),
        )
        self._last = now
        if last is None:
            return False
        moved = [mask_distance(a, b).overall for a, b in zip(last, now, strict=True)]
        self.distances.append((step, moved[0], moved[1]))
        recent = self.distances[-rule.window :]
        self.settled = len(recent) == rule.window and all(max(h, n) <= rule.threshold for _, h, n in recent)
        return self.settled

    def check_gates(self, step: int, gates: Gates) -> bool:
        """`check` on live coefficients."""
        heads, neurons = (p.detach().cpu().numpy() for p in gates.parameters())
        return self.check(step, heads, neurons)
