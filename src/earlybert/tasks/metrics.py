"""Scores of predictions, by the names GLUE uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def accuracy(predicted: Array, labels: Array, classes: int = 2) -> float:
    """Share of rows that are right."""
    return float((predicted == labels).mean())


def f1(predicted: Array, labels: Array, classes: int = 2) -> float:
    """F1 of class 1 for two classes, as GLUE takes it; `macro_f1` for more."""
    from sklearn.metrics import f1_score

    if classes > 2:
        return macro_f1(predicted, labels, classes)
    return float(f1_score(labels, predicted, labels=[1], average=None, zero_division=0.0)[0])  # pyright: ignore


def macro_f1(predicted: Array, labels: Array, classes: int = 2) -> float:
    """Mean of the F1 of each class that occurs among predictions or labels; none of them is the positive one."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=0.0))  # pyright: ignore


def matthews(predicted: Array, labels: Array, classes: int = 2) -> float:
    """Matthews correlation coefficient; 0 when all predictions, or all labels, are one class."""
    from sklearn.metrics import matthews_corrcoef

    if len(np.unique(predicted)) == 1 or len(np.unique(labels)) == 1:
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


def pearson(predicted: Array, labels: Array, classes: int = 1) -> float:
    """Pearson correlation; 0 when either side is constant."""
    if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(np.corrcoef(predicted, labels)[0, 1])


def spearman(predicted: Array, labels: Array, classes: int = 1) -> float:
    """Spearman rank correlation; 0 when either side is constant."""
    from scipy.stats import rankdata

    return pearson(rankdata(predicted), rankdata(labels))


METRICS: dict[str, Callable[[Array, Array, int], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def compute(names: Sequence[str], predicted: Array, labels: Array, *, classes: int = 2) -> dict[str, float]:
    """Each metric in `names`, as a fraction (not per cent).

    Args:
        names: Keys of `METRICS`.
        predicted: Class numbers or values, `[rows]`.
        labels: The same, as they should be.
        classes: How many the task has, whether or not all of them occur here.
    """
    return {name: METRICS[name](predicted, labels, classes) for name in names}
