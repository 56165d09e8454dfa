"""What a comparison would take, before anything runs: optimizer steps and FLOPs, from the data and live shapes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..anatomy import of
from ..baselines import imp, layerdrop
from ..config import Finetune
from ..config_methods import METHODS, RIVALS
from ..config_recipe import with_recipe
from ..cost import count
from ..report.sheet import Sheet
from ..ticket import apply
from .bench import SHARED_ORDER, Bench
from .comparison import Comparison
from .plan import plan, stand_in
from .verdict import reference_row

STEP_ON_H100 = 3.4e-3
"""Seconds of a fast step of BERT-base on few tokens: what the host and small kernels take (benchmarks/README.md)."""
TUNED_ON = 0.9
"""Share of train that a trial is trained on; the rest is validated on."""


@dataclass(frozen=True)
class Price:
    """Of training; evaluation, scoring and refits are not in it."""

    steps: int
    flops: float

    def __add__(self, other: Price) -> Price:
        return Price(self.steps + other.steps, self.flops + other.flops)

    def __mul__(self, factor: float) -> Price:
        return Price(round(self.steps * factor), self.flops * factor)


def forecast(comparison: Comparison) -> Sheet:
    """Steps and FLOPs of each row, all tasks, seeds and trials of tuning together. Reads the data, trains nothing.

    A search counts up to its cap. Every ticket is taken as wide as a random one of its budget.

    Raises:
        Refused: The model or the data cannot be used.
    """
    rows: list[list[str]] = []
    total, runs = Price(0, 0.0), 0
    for task in comparison.tasks:  # task by task, so that each one's text is read once
        for row in comparison.methods:
            if comparison.method_of(row) not in RIVALS:
                _of_task(comparison, row, task)
    reference = reference_row(comparison)
    whole = _of_row(comparison, reference)
    for row in comparison.methods:
        price = _of_row(comparison, row)
        if comparison.method_of(row) in RIVALS:  # the ticket's FLOPs, in dense steps
            price = Price(round(whole.steps * price.flops / whole.flops), price.flops)
        trials = len(comparison.trials(row))
        all_of_them = price * len(comparison.seeds) + price * (trials * TUNED_ON)
        runs += len(comparison.tasks) * (len(comparison.seeds) + trials)
        total += all_of_them
        rows.append(
            [
                row,
                str(len(comparison.tasks) * (len(comparison.seeds) + trials)),
                f"{all_of_them.steps:,}",
                f"{all_of_them.flops / 1e12:,.1f}",
                f"{price.flops / whole.flops:.2f}",
            ]
        )
    rows.append(["together", str(runs), f"{total.steps:,}", f"{total.flops / 1e12:,.1f}", ""])
    notes = [
        "Training alone: evaluation, scoring, refits and a teacher's passes come on top. A search that may stop sooner "
        "counts in full.",
        f"With {STEP_ON_H100 * 1e3:.1f} ms a step, the least that a fast step of BERT-base takes on an H100 "
        f"(benchmarks/README.md), {total.steps * STEP_ON_H100 / 60:,.0f} minutes of one, one run after another; a "
        "smaller model was not measured there.",
    ]
    return Sheet("What it would take", ("method", "runs", "steps", "TFLOP", f"FLOPs of {reference}"), rows, notes)


def _of_row(comparison: Comparison, row: str) -> Price:
    """One seed, all tasks."""
    like = comparison.needs(row)
    if comparison.method_of(row) in RIVALS and like is not None:
        return _of_row(comparison, like)  # it is stopped there
    total = Price(0, 0.0)
    for task in comparison.tasks:
        total += _of_task(comparison, row, task)
    return total


def _of_task(comparison: Comparison, row: str, task: str) -> Price:
    """One seed of one task; not of a rival."""
    settings = comparison.settings_of(task, row, comparison.seeds[0])
    return _of_run(tuple(sorted({**settings, "method": _alike(settings["method"])}.items(), key=str)))


def _alike(method: str) -> str:
    """A method that costs the same and needs no other run to be set up."""
    return "ticket" if METHODS[method].like else method


@lru_cache(maxsize=1024)
def _of_run(settings: tuple[tuple[str, Any], ...]) -> Price:
    bench = Bench.set_up(Finetune(**with_recipe(dict(settings))), reuse=True)
    config, lengths = bench.config, plan(bench)
    kind, model = METHODS[config.method], bench.theta_0()
    stream = bench.stream(SHARED_ORDER)
    shapes = [
        shape
        for step in range(stream.steps_per_epoch)
        for shape in stream.shapes(step, padded=config.engine == "eager")
    ]
    dense = count(model).step(shapes) / stream.steps_per_epoch
    if config.method == "imp":
        return Price(lengths.train, dense * lengths.train) * imp.ROUNDS
    if kind.dense:
        depth = len(of(model).layers)
        share = len(layerdrop.kept_layers(depth)) / depth if config.method.startswith("layerdrop") else 1.0
        return Price(lengths.train, share * dense * lengths.train)
    ticket = stand_in(config, of(model))
    small = count(apply(model, ticket, inplace=True, check=False)).step(shapes) / stream.steps_per_epoch
    searched = lengths.search if kind.searches else 0
    trained = lengths.train - (searched if config.weights == "keep" else 0)
    return Price(searched + trained, dense * searched + small * trained)
