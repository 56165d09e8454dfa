"""Tuning before a comparison: on a part of train that shares no text with the rest, never on the validation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...anatomy import Refused
from ..display import say
from ..grid import Cell, run_grid
from .comparison import Comparison, slug

SEED = 0
"""Of all trials; the seeds that count are others, or see data in another order."""


def tuned(comparison: Comparison, folder: Path) -> Comparison:
    """Try every combination of every row's lists once, and keep the best by the headline metric.

    Rows that take something from a ticket are tuned after it, against the trial that won.

    Args:
        comparison: Rows without `tune` are left as they are.
        folder: Of the comparison; a trial is an ordinary run in `<task>/<row>/trial-<number>`.

    Raises:
        Refused: All trials of a row failed.
    """
    first = [row for row in comparison.methods if comparison.needs(row) is None]
    after = [row for row in comparison.methods if comparison.needs(row) is not None]
    if not any(comparison.trials(row) for row in comparison.methods):
        return comparison
    say("tuning on a part of train")
    winners: dict[tuple[str, str], Cell] = {}
    for rows in (first, after):
        wanted = [row for row in rows if trials_of(comparison, row)]
        comparison = _choose(comparison, folder, wanted, winners)
    return comparison


def trials_of(comparison: Comparison, row: str) -> list[dict[str, Any]]:
    """Settings of a row's runs on a part of train.

    One without settings where a tuned row takes something from this one: it needs a run on the same part of train.
    """
    needed = {comparison.needs(other) for other in comparison.methods if comparison.trials(other)}
    return comparison.trials(row) or ([{}] if row in needed else [])


def _choose(
    comparison: Comparison, folder: Path, rows: Sequence[str], winners: dict[tuple[str, str], Cell]
) -> Comparison:
    cells: dict[str, tuple[str, str, dict[str, Any]]] = {}
    grid: list[Cell] = []
    for task in comparison.tasks:
        for row in rows:
            for number, trial in enumerate(trials_of(comparison, row), start=1):
                name = f"{slug(task)}/{slug(row)}/trial-{number}"
                settings = {**comparison.settings_of(task, row, SEED, trial), "tuning": True}
                like = comparison.needs(row)
                needs = {} if like is None else {"like": winners[task, like].name}
                cells[name] = (task, row, trial)
                grid.append(Cell(name, settings, needs=needs, keep_model=False))
    outcomes = run_grid([*winners.values(), *grid], folder, jobs=comparison.jobs)
    chosen = {row: dict(by_task) for row, by_task in comparison.chosen.items()}
    for task in comparison.tasks:
        for row in rows:
            scores = {
                name: metrics["score"][metrics["headline"]]
                for name, (its_task, its_row, _) in cells.items()
                if (its_task, its_row) == (task, row) and (metrics := outcomes[name].metrics) is not None
            }
            if not scores:
                raise Refused(f"{task}: all trials of {row} failed; see {folder / slug(task) / slug(row)}.")
            best = max(scores, key=lambda name: scores[name])
            winners[task, row] = next(cell for cell in grid if cell.name == best)
            chosen.setdefault(row, {})[task] = cells[best][2]
            if cells[best][2]:
                say(f"{task}, {row}: {cells[best][2]} of {len(scores)} trials")
    return replace(comparison, chosen=chosen)
