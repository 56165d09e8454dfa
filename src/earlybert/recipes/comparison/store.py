"""Runs that several comparisons share: kept once, by what they are, and linked from each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..grid import Cell
from .comparison import slug

DIGITS = 12


def link(cells: Sequence[Cell], folder: Path, store: Path) -> None:
    """Put a link to its run in the store where each cell's run folder will be looked for.

    Args:
        cells: Of a grid; those that others need are among them.
        folder: Of the grid. A run folder that is there already, and not a link, stays.
        store: Folder of the runs, made when missing. A run is named by its settings and by those of the run it needs,
            so that equal runs of different grids are one.
    """
    known: dict[str, str] = {}
    waiting = list(cells)
    while waiting:
        ready = [cell for cell in waiting if all(name in known for name in cell.needs.values())]
        for cell in ready:
            known[cell.name] = _name(cell, known)
            _link(folder / cell.name, store / known[cell.name])
        waiting = [cell for cell in waiting if cell.name not in known]


def _name(cell: Cell, known: dict[str, str]) -> str:
    settings = {name: value for name, value in cell.settings.items() if name not in cell.needs}
    after = {setting: known[name] for setting, name in cell.needs.items()}
    text = json.dumps([settings, after, cell.keep_model], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
    words = [str(settings.get("task", "own")), str(settings["method"]), f"seed-{settings['seed']}", digest]
    return slug("-".join(words).replace("_", "-"))


def _link(place: Path, run: Path) -> None:
    run.mkdir(parents=True, exist_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(run.resolve(), place.parent.resolve())
    if place.is_symlink():
        if os.readlink(place) == target:
            return
        place.unlink()  # settings have changed: another run
    if not place.exists():
        place.symlink_to(target)
