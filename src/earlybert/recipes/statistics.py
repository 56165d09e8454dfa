"""Is one method better than another? Differences over paired seeds, with intervals that can be trusted.

Runs are paired: seed k of every method shares its data order and head initialisation, and all
predict the same validation rows. The difference of two methods is uncertain because of the seeds
drawn and because of the examples drawn; both are resampled together (Efron and Tibshirani 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit  # scipy.stats takes a second to import

RESAMPLES = 2000
LEVEL = 0.05
"""Two-sided level of the intervals, and of the tests after Holm's correction."""
POWER = 0.8
CHUNK = 250
"""Resamples at once: bounds memory to CHUNK x rows x 8 bytes a few times over."""

Floats = NDArray[np.float64]
Metric = Callable[[Floats, Floats, Floats], Floats]
"""Values `[rows]`, labels `[rows]` and counts `[resamples, rows]` to the metric of each resample `[resamples]`."""


@dataclass(frozen=True)
class Difference:
    """Score of one method minus that of another, as fractions."""

    mean: float
    """Over the paired seeds."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""
    inferior: float
    """One-sided p value of "worse by the margin or more": small means not inferior."""
    different: float
    """Two-sided p value of "no difference"."""
    detectable: float | None
    """The smallest true difference that these seeds and rows would have shown four times in five; None where all
    runs agree on every row, and nothing is known."""
    seeds: int
    error: float = 0.0
    """Standard error of the mean."""
    freedom: float | None = None
    """Degrees of freedom of that error; None where it is of the examples alone, which are many."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def difference(
    ours: Sequence[Floats],
    theirs: Sequence[Floats],
    labels: Floats,
    metric: str,
    *,
    margin: float,
    classes: int = 2,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare two methods over paired seeds.

    A resample draws examples with replacement (the same for all runs) and seeds - 1 of the seeds,
    which makes its variance that of the mean (Rao and Wu 1988). The interval takes Student's t with
    the degrees of freedom that the share of the seeds in the variance leaves (Satterthwaite 1946);
    with one seed it speaks of the examples alone.

    Args:
        ours: Predictions of one method, one vector `[rows]` a seed.
        theirs: The other's, in the same order of seeds.
        labels: What is right, `[rows]`.
        metric: A key of `METRICS`.
        margin: Worse by less than this counts as not inferior. Named before the runs.
        classes: How many the task has.
        resamples: How many.
        seed: Of the resampling.

    Raises:
        ValueError: The seeds are not paired, or there are none.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"seeds are not paired: {len(ours)} and {len(theirs)} runs.")
    compute, seeds, rows = _metric(metric, classes), len(ours), len(labels)
    whole = np.ones((1, rows))
    observed = _differences(compute, ours, theirs, labels, whole)[:, 0]  # [seeds]
    random = np.random.default_rng(seed)
    drawn: list[Floats] = []
    for begin in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - begin)
        counts = random.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)
        found = _differences(compute, ours, theirs, labels, counts)  # [seeds, resamples]
        if seeds > 1:
            chosen = random.integers(seeds, size=(seeds - 1, size))
            found = np.take_along_axis(found, chosen, axis=0)
        drawn.append(found.mean(axis=0))
    variance = float(np.concatenate(drawn).var(ddof=1))
    of_seeds = float(observed.var(ddof=1)) / seeds if seeds > 1 else 0.0
    return _judge(float(observed.mean()), variance, of_seeds, seeds, margin)


def _judge(mean: float, variance: float, of_seeds: float, seeds: int, margin: float) -> Difference:
    error = max(variance, of_seeds) ** 0.5
    if error == 0:  # no run differs from any other: nothing is known of what another would do
        return Difference(mean, mean, mean, 1.0, 1.0, None, seeds)
    freedom = (error**4 / of_seeds**2) * (seeds - 1) if of_seeds > 0 else np.inf
    return _judged(mean, error, freedom, seeds, margin)


def _judged(mean: float, error: float, freedom: float, seeds: int, margin: float) -> Difference:
    wide = float(stdtrit(freedom, 1 - LEVEL / 2))
    return Difference(
        mean,
        mean - wide * error,
        mean + wide * error,
        float(stdtr(freedom, -(mean + margin) / error)),
        float(2 * stdtr(freedom, -abs(mean) / error)),
        (wide + float(stdtrit(freedom, POWER))) * error,
        seeds,
        error,
        freedom if np.isfinite(freedom) else None,
    )


def over_tasks(found: Sequence[Difference], *, margin: float) -> Difference:
    """The mean of the differences on several tasks, which are independent: their variances add.

    Degrees of freedom are pooled as Satterthwaite (1946) does it. One test, to which no correction belongs.

    Args:
        found: One a task.
        margin: As in `difference`.
    """
    mean, seeds = float(np.mean([each.mean for each in found])), min(each.seeds for each in found)
    variances = [each.error**2 for each in found]
    total = sum(variances)
    if min(variances) == 0:  # nothing is known of such a task, and so not of the mean
        return Difference(mean, mean, mean, 1.0, 1.0, None, seeds)
    loose = sum(
        variance**2 / each.freedom for variance, each in zip(variances, found, strict=True) if each.freedom is not None
    )
    return _judged(mean, total**0.5 / len(found), total**2 / loose if loose else np.inf, seeds, margin)


def interval(
    values: Floats, labels: Floats, metric: str, *, classes: int = 2, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of one model's score over the examples.

    A share of right rows has Wilson's score interval (1927), which says what few rows leave open where all are right.
    Other scores have percentiles of the bootstrap (Efron and Tibshirani 1993), which have no width there.

    Args:
        values: Predictions, `[rows]`.
        labels: What is right, `[rows]`.
        metric: A key of `METRICS`.
        classes: How many the task has.
        resamples: How many.
        seed: Of the resampling.
    """
    random, rows = np.random.default_rng(seed), len(labels)
    right = values == labels if metric == "accuracy" else values
    if metric in ("accuracy", "mean") and np.isin(right, (0, 1)).all():
        return _wilson(float(right.mean()), rows)
    found: list[Floats] = []
    for begin in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - begin)
        # Drawing the examples one by one is faster than a multinomial over tens of thousands of rows.
        counts = np.stack(
            [np.bincount(random.integers(rows, size=rows), minlength=rows).astype(np.float64) for _ in range(size)]
        )
        found.append(_metric(metric, classes)(values, labels, counts))
    low, high = np.quantile(np.concatenate(found), (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)


def _wilson(share: float, rows: int) -> tuple[float, float]:
    """The shares that would not be rejected by the normal test of this one."""
    z = float(ndtri(1 - LEVEL / 2))
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    wide = z * (share * (1 - share) / rows + z**2 / (4 * rows**2)) ** 0.5 / (1 + z**2 / rows)
    return middle - wide if share > 0 else 0.0, middle + wide if share < 1 else 1.0  # there, without rounding


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for looking at several tasks (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted.tolist()


def _differences(
    compute: Metric, ours: Sequence[Floats], theirs: Sequence[Floats], labels: Floats, counts: Floats
) -> Floats:
    return np.stack(
        [compute(a, labels, counts) - compute(b, labels, counts) for a, b in zip(ours, theirs, strict=True)]
    )


def _mean(values: Floats, _: Floats, counts: Floats) -> Floats:
    return counts @ values / counts.sum(axis=1)


def _accuracy(values: Floats, labels: Floats, counts: Floats) -> Floats:
    return _mean((values == labels).astype(np.float64), labels, counts)


def _f1(values: Floats, labels: Floats, counts: Floats) -> Floats:
    """Of class 1."""
    return _f1_of(1.0, values, labels, counts)[0]


def _macro_f1(values: Floats, labels: Floats, counts: Floats) -> Floats:
    """Over the classes that occur among predictions or labels. One that a resample lacks keeps its F1 of all rows."""
    classes, all_rows = np.union1d(values, labels), np.ones((1, len(labels)))
    scores, there = np.stack([_f1_of(number, values, labels, counts) for number in classes], axis=1)
    whole, _ = np.stack([_f1_of(number, values, labels, all_rows) for number in classes], axis=1)
    return np.where(there > 0, scores, whole).mean(axis=0)  # [classes, resamples] and [classes, 1]


def _f1_of(number: float, values: Floats, labels: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """F1 of a class in each resample, and how often it occurs there among predictions and labels."""
    predicted, true = values == number, labels == number
    there = counts @ predicted + counts @ true
    return _ratio(2 * (counts @ (predicted & true)), there), there


def _matthews(values: Floats, labels: Floats, counts: Floats) -> Floats:
    """Correlation of the indicators of the classes (Gorodkin 2004); for two classes the usual coefficient."""
    classes = np.union1d(values, labels)
    n = counts.sum(axis=1)
    right = counts @ (values == labels)
    predicted = np.stack([counts @ (values == c) for c in classes])  # [classes, resamples]
    true = np.stack([counts @ (labels == c) for c in classes])
    cross = (predicted * true).sum(axis=0)
    spread = np.sqrt((n**2 - (predicted**2).sum(axis=0)) * (n**2 - (true**2).sum(axis=0)))
    return _ratio(right * n - cross, spread)


def _pearson(values: Floats, labels: Floats, counts: Floats) -> Floats:
    return _correlation(np.broadcast_to(values, counts.shape), np.broadcast_to(labels, counts.shape), counts)


def _spearman(values: Floats, labels: Floats, counts: Floats) -> Floats:
    return _correlation(_ranks(values, counts), _ranks(labels, counts), counts)


def _ranks(values: Floats, counts: Floats) -> Floats:
    """Rank of each row within each resample, ties in the middle, `[resamples, rows]`."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)  # [resamples, groups]
    middle = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    return middle[:, group]


def _correlation(x: Floats, y: Floats, counts: Floats) -> Floats:
    n = counts.sum(axis=1, keepdims=True)
    dx = x - (counts * x).sum(axis=1, keepdims=True) / n
    dy = y - (counts * y).sum(axis=1, keepdims=True) / n
    above = (counts * dx * dy).sum(axis=1)
    return _ratio(above, np.sqrt((counts * dx * dx).sum(axis=1) * (counts * dy * dy).sum(axis=1)))


def _metric(name: str, classes: int) -> Metric:
    """What `tasks.metrics` computes under this name for a task of so many classes."""
    return METRICS["macro_f1" if name == "f1" and classes > 2 else name]


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above, dtype=np.float64), where=below > 0)


METRICS: dict[str, Metric] = {
    "mean": _mean,
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
"""By the names of `tasks.metrics`, where `f1` is that of class 1 of two; `mean` is for values that are a score a row
(questions)."""
