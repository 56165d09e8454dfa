"""Rows of text with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Examples:
    """Rows of text with labels."""

    texts: Sequence[str]
    pairs: Sequence[str] | None
    """The second text of each row, for tasks on two."""
    labels: Sequence[int] | Sequence[float]
    """Class numbers from 0, or values for regression; zeros where they are not known."""
    ids: Sequence[str] | None = None
    """The rows' own names, where the data has them."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> Examples:
        """These rows, in this order."""
        return Examples(
            [self.texts[row] for row in rows],
            None if self.pairs is None else [self.pairs[row] for row in rows],
            [self.labels[row] for row in rows],  # pyright: ignore[reportArgumentType]
            None if self.ids is None else [self.ids[row] for row in rows],
        )
