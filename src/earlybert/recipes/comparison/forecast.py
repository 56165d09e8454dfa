"""What a comparison would take, before anything runs: optimizer steps and FLOPs, from the data and live shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any

from ...anatomy import of
from ...baselines import imp, layerdrop
from ...config.finetune import Finetune, Ticketing
from ...config.methods import METHODS, RIVALS
from ...config.recipe import with_recipe
from ...cost import count
from ...report.sheet import Sheet
from ...ticket import apply
from ..advise import duration
from ..drawing import after_cut, stand_in
from ..finetuning.bench import SHARED_ORDER, Bench
from ..finetuning.plan import later_cuts, plan
from .comparison import Comparison
from .tuning import trials_of
from .verdict import reference_row

STEP_ON_H100 = 3.4e-3
"""Seconds of a fast step of BERT-base without tokens: where a line through its times in benchmarks/README.md begins."""
TUNED_ON = 0.9
"""Share of train that a trial is trained on; the rest is validated on."""


Trial = Mapping[str, Any]
"""Settings that are tried in place of a row's own."""


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
                for trial in ({}, *trials_of(comparison, row)):
                    _of_task(comparison, row, task, trial)
    reference = reference_row(comparison)
    whole = _of_row(comparison, reference, {})
    for row in comparison.methods:
        trials = trials_of(comparison, row)
        price, *tried = [_of_row(comparison, row, trial) for trial in ({}, *trials)]
        if comparison.method_of(row) in RIVALS:  # the ticket's FLOPs, in dense steps
            price, *tried = [Price(round(whole.steps * e.flops / whole.flops), e.flops) for e in (price, *tried)]
        all_of_them = price * len(comparison.seeds) + sum(tried, Price(0, 0.0)) * TUNED_ON
        of_row = len(comparison.tasks) * (len(comparison.seeds) + len(trials))
        runs += of_row
        total += all_of_them
        rows.append(
            [
                row,
                str(of_row),
                f"{all_of_them.steps:,}",
                f"{all_of_them.flops / 1e12:,.1f}",
                f"{price.flops / whole.flops:.2f}",
            ]
        )
    rows.append(["together", str(runs), f"{total.steps:,}", f"{total.flops / 1e12:,.1f}", ""])
    notes = [
        "Training alone: evaluation, scoring, refits and a teacher's passes come on top. A search that may stop sooner "
        "counts in full.",
        f"With {STEP_ON_H100 * 1e3:.1f} ms a step, what a fast step of BERT-base would take on an H100 on hardly any "
        f"tokens (from its times in benchmarks/README.md), {duration(total.steps * STEP_ON_H100)} of one, one run "
        "after another; a smaller model was not measured there.",
    ]
    return Sheet("What it would take", ("method", "runs", "steps", "TFLOP", f"FLOPs of {reference}"), rows, notes)


def _of_row(comparison: Comparison, row: str, trial: Trial) -> Price:
    """One seed, all tasks; with the settings of a trial."""
    like = comparison.needs(row)
    if comparison.method_of(row) in RIVALS and like is not None:
        return _of_row(comparison, like, {})  # it is stopped there
    total = Price(0, 0.0)
    for task in comparison.tasks:
        total += _of_task(comparison, row, task, trial)
    return total


def _of_task(comparison: Comparison, row: str, task: str, trial: Trial) -> Price:
    """One run of one task, of the first seed; not of a rival.

    What is like a ticket pays for its search and has its widths, but trains as its own settings say.
    """
    settings = comparison.settings_of(task, row, comparison.seeds[0], trial)
    if (like := comparison.needs(row)) is not None:
        mine = {f.name: settings.get(f.name, f.default) for f in fields(Ticketing)}
        settings = {**comparison.settings_of(task, like, comparison.seeds[0]), **mine}
    return _of_run(tuple(sorted(settings.items(), key=str)))


@lru_cache(maxsize=1024)
def _of_run(settings: tuple[tuple[str, Any], ...]) -> Price:
    bench = Bench.set_up(Finetune(**with_recipe(dict(settings))), reuse=True)
    config, lengths = bench.config, plan(bench)
    kind, model = METHODS[config.method], bench.theta_0()
    stream = bench.stream(SHARED_ORDER)
    shapes = [
        shape for step in range(stream.steps_per_epoch) for shape in stream.shapes(step, padded=bench.engine == "eager")
    ]
    dense = count(model).step(shapes) / stream.steps_per_epoch
    if config.method == "imp":
        return Price(lengths.train, dense * lengths.train) * imp.ROUNDS
    if kind.dense:
        depth = len(of(model).layers)
        share = len(layerdrop.kept_layers(depth)) / depth if config.method.startswith("layerdrop") else 1.0
        return Price(lengths.train, share * dense * lengths.train)
    searched = lengths.search if kind.searches else 0
    first = searched if config.weights == "keep" else 0
    flops, anatomy, ticket = dense * searched, of(model), None
    ends = [*later_cuts(first, lengths.train, config.cuts), lengths.train]
    for number, (begin, end) in enumerate(pairwise([first, *ends]), start=1):
        ticket = stand_in(after_cut(config, number), anatomy, within=ticket)
        small = count(apply(model, ticket, inplace=True, check=False)).step(shapes) / stream.steps_per_epoch
        flops += small * (end - begin)
    return Price(searched + lengths.train - first, flops)
