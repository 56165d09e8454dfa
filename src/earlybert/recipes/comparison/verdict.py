"""What a comparison came to: scores, costs, and differences to the dense model at the same cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...anatomy import Refused
from ...config.finetune import Finetune
from ...config.methods import RIVALS
from ...tasks import Predictions
from ..grid import Outcome
from ..statistics import Difference, difference, holm
from ..versus import saved
from .comparison import Comparison, cell_name

NEAR = 1.05
"""A rival whose cost is within this factor is "at the same cost": one optimizer step of a short run is 3 %."""


@dataclass(frozen=True)
class Verdict:
    """One method on one task."""

    scores: dict[int, float]
    """Headline metric by seed, as a fraction; seeds that failed are not in it."""
    failures: dict[int, str]
    flops: float | None
    """Of the dense run's, mean over seeds."""
    seconds: float | None
    """Training time of the dense run's, search included, mean over seeds; None where times are not to be told."""
    split: dict[str, float] | None
    """Where the time went that was saved, as `versus.saved`, mean over seeds."""
    parameters: float | None
    """Of the dense model's."""
    forward: float | None = None
    """FLOPs of inference of the dense model's, at the mean length of the training rows, mean over seeds."""
    rival: str | None = None
    """The dense row that was stopped at this one's cost, else the one nearest in FLOPs."""
    rival_cost: float | None = None
    """FLOPs of that row over this one's."""
    difference: Difference | None = None
    """To that row."""
    inferior: float | None = None
    """Its p value after Holm's correction over the tasks."""
    different: float | None = None
    """The same for "no difference"."""
    to_full: Difference | None = None
    """To the full dense run, which costs more."""
    collapsed: tuple[int, ...] = ()
    """Seeds whose model gives one answer for every row."""

    @property
    def mean(self) -> float | None:
        """Mean score over seeds."""
        return statistics.fmean(self.scores.values()) if self.scores else None

    @property
    def error(self) -> float:
        """Standard error of the mean; 0 with one seed."""
        seeds = len(self.scores)
        return statistics.stdev(self.scores.values()) / seeds**0.5 if seeds > 1 else 0.0


Verdicts = dict[str, dict[str, Verdict]]
"""By row and task."""


def judge(comparison: Comparison, folder: Path, outcomes: Mapping[str, Outcome]) -> Verdicts:
    """Everything the tables show, from the run folders.

    Raises:
        Refused: Runs of a task were not scored on the same rows.
    """
    reference = reference_row(comparison)
    verdicts: Verdicts = {
        row: {
            task: replace(
                _costs(comparison, outcomes, task, row, reference),
                collapsed=_collapsed(comparison, folder, outcomes, task, row),
            )
            for task in comparison.tasks
        }
        for row in comparison.methods
    }
    for row in comparison.methods:
        for task in comparison.tasks:
            mine = verdicts[row][task]
            rival = _rival(comparison, verdicts, task, row)
            if rival is not None:
                mine = _compared(comparison, folder, verdicts, task, row, rival)
            if row != reference and comparison.method_of(reference) == "dense":
                mine = replace(mine, to_full=_apart(comparison, folder, verdicts, task, row, reference))
            verdicts[row][task] = mine
        tested = [task for task in comparison.tasks if verdicts[row][task].difference is not None]
        found = [difference for task in tested if (difference := verdicts[row][task].difference) is not None]
        inferior, different = holm([each.inferior for each in found]), holm([each.different for each in found])
        for task, worse, other in zip(tested, inferior, different, strict=True):
            verdicts[row][task] = replace(verdicts[row][task], inferior=worse, different=other)
    return verdicts


def reference_row(comparison: Comparison) -> str:
    """The row that costs are relative to: the full dense model, or the first row where there is none."""
    dense = [row for row in comparison.methods if comparison.method_of(row) == "dense"]
    return dense[0] if dense else next(iter(comparison.methods))


def _costs(comparison: Comparison, outcomes: Mapping[str, Outcome], task: str, row: str, reference: str) -> Verdict:
    found = {seed: outcomes[cell_name(task, row, seed)] for seed in comparison.seeds}
    done = {seed: outcome.metrics for seed, outcome in found.items() if outcome.metrics is not None}
    failures = {seed: outcome.failure for seed, outcome in found.items() if outcome.failure is not None}
    scores = {seed: metrics["score"][metrics["headline"]] for seed, metrics in done.items()}
    pairs = [
        (metrics, dense)
        for seed, metrics in done.items()
        if (dense := outcomes[cell_name(task, reference, seed)].metrics) is not None
    ]
    if not pairs:
        return Verdict(scores, failures, None, None, None, None)
    alike = _same_engine(comparison, outcomes, task, row)
    apart = any(_ran(metrics) != _ran(dense) for metrics, dense in pairs) and alike is None
    seconds = split = None
    if comparison.times:
        seconds = statistics.fmean(metrics["seconds"] / dense["seconds"] for metrics, dense in pairs)
    if comparison.times and not apart:  # else, no dense run on its engine: what the ticket saved cannot be told from it
        splits = [saved(dense, metrics, alike) for metrics, dense in pairs]
        split = {name: statistics.fmean(each[name] for each in splits) for name in splits[0]}
    return Verdict(
        scores,
        failures,
        statistics.fmean(metrics["flops"] / dense["flops"] for metrics, dense in pairs),
        seconds,
        split,
        statistics.fmean(metrics["parameters"]["after"] / dense["parameters"]["after"] for metrics, dense in pairs),
        mean_over_tasks([_a_token(metrics, dense) for metrics, dense in pairs]),
    )


def _a_token(metrics: Mapping[str, Any], dense: Mapping[str, Any]) -> float | None:
    """FLOPs of one model over another's; forward and backward are in proportion."""
    mine, its = metrics.get("flops_a_token"), dense.get("flops_a_token")
    if not mine or not its:
        return None
    if metrics["model"] == dense["model"]:  # tokens cost what rows of their own lengths make them
        return (mine["after"] / mine["before"]) / (its["after"] / its["before"])
    return mine["after"] / its["after"]


def _collapsed(
    comparison: Comparison, folder: Path, outcomes: Mapping[str, Outcome], task: str, row: str
) -> tuple[int, ...]:
    """Seeds whose model says one thing of all rows: two such models look alike, and neither has learned."""
    done = [seed for seed in comparison.seeds if outcomes[cell_name(task, row, seed)].metrics is not None]
    found = {seed: _predictions(folder, task, row, seed) for seed in done}
    return tuple(seed for seed, each in found.items() if each.classes > 0 and len(np.unique(each.values)) == 1)


def _ran(metrics: Mapping[str, Any]) -> tuple[str, str]:
    return metrics["engine"], metrics["environment"]["precision"]


def _same_engine(comparison: Comparison, outcomes: Mapping[str, Outcome], task: str, row: str) -> dict[str, Any] | None:
    """A dense run on the engine of this row, where the reference is on another and there is one."""

    def engine(name: str) -> str:
        return comparison.settings_of(task, name, comparison.seeds[0]).get("engine", Finetune.engine)

    if engine(row) == engine(reference_row(comparison)):
        return None
    for other in comparison.methods:
        if comparison.method_of(other) == "dense" and engine(other) == engine(row):
            return outcomes[cell_name(task, other, comparison.seeds[0])].metrics
    return None


def _rival(comparison: Comparison, verdicts: Verdicts, task: str, row: str) -> str | None:
    """The dense row with the nearest cost; one that was stopped at this very row's FLOPs goes first."""
    mine = verdicts[row][task]
    if comparison.method_of(row) == "dense" or mine.flops is None:
        return None
    rows = [
        other
        for other in comparison.methods
        if other != row and comparison.is_dense(other) and verdicts[other][task].flops
    ]
    if comparison.method_of(row) in RIVALS:
        rows = [other for other in rows if comparison.method_of(other) == "dense"]

    def apart(other: str) -> float:
        cost = verdicts[other][task].flops
        assert cost is not None
        assert mine.flops is not None
        return abs(math.log(cost / mine.flops))

    near = [other for other in rows if apart(other) <= math.log(NEAR)]
    own = [other for other in near if comparison.needs(other) == row]
    return min(own or near or rows, key=apart, default=None)


def _compared(comparison: Comparison, folder: Path, verdicts: Verdicts, task: str, row: str, rival: str) -> Verdict:
    mine, its = verdicts[row][task], verdicts[rival][task]
    found = _apart(comparison, folder, verdicts, task, row, rival)
    if found is None:
        return mine
    assert mine.flops is not None
    assert its.flops is not None
    return replace(mine, rival=rival, rival_cost=its.flops / mine.flops, difference=found)


def _apart(
    comparison: Comparison, folder: Path, verdicts: Verdicts, task: str, row: str, other: str
) -> Difference | None:
    """Difference of two rows over the seeds that both have; None where there is none."""
    mine, its = verdicts[row][task], verdicts[other][task]
    seeds = [seed for seed in comparison.seeds if seed in mine.scores and seed in its.scores]
    if not seeds:
        return None
    ours, theirs = ([_predictions(folder, task, name, seed) for seed in seeds] for name in (row, other))
    labels = ours[0].labels
    if any(
        len(each) != len(labels) or not np.array_equal(each.labels, labels) or each.ids != ours[0].ids
        for each in (*ours, *theirs)
    ):
        raise Refused(f"{task}: runs of {row} and {other} were not scored on the same rows; they cannot be compared.")
    return paired(ours, theirs, margin=comparison.margin / 100)


def paired(ours: Sequence[Predictions], theirs: Sequence[Predictions], *, margin: float) -> Difference:
    """Difference of the headline metric between runs of one task on the same rows, seed by seed.

    Args:
        ours: Predictions of one row's runs.
        theirs: Those of another, in the same order of seeds.
        margin: As `statistics.difference` takes it, a fraction.
    """
    return difference(
        [each.values.astype(np.float64) for each in ours],
        [each.values.astype(np.float64) for each in theirs],
        ours[0].labels.astype(np.float64),
        "mean" if ours[0].classes == 0 else ours[0].metrics[0],
        margin=margin,
        classes=ours[0].classes,
    )


def _predictions(folder: Path, task: str, row: str, seed: int) -> Predictions:
    return Predictions.load(folder / cell_name(task, row, seed) / "predictions.safetensors")


def mean_over_tasks(values: Sequence[float | None]) -> float | None:
    """None where one is missing: a mean over other tasks than the row beside it would mislead."""
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present and len(present) == len(values) else None
