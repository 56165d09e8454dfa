"""Pages and model cards from run folders; for a run that just ended, what goes wrong here is one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import Refused, first_line
from ..report.card import card
from ..report.folder import RunRecord, read, told_apart
from ..report.numbers import Resampled
from ..tasks.predictions import Predictions
from ..ticket.card import NAME
from ..ticket.files import write_atomically
from .display import say
from .run import Run, RunFolder
from .statistics import METRICS, difference, interval

PAGE = "report.html"


def report(paths: Sequence[Path], *, output: Path | None = None, figures: Path | None = None) -> Path:
    """Write one page for one run, or for several side by side.

    Args:
        paths: Run folders.
        output: The page; by default `report.html` in the run folder, or here for several.
        figures: Folder for the figures as files; with several runs a folder for each in it.

    Raises:
        Refused: There is no run, a folder is none, or so many do not fit.
    """
    from ..report.page import distance_maps, drawings, page

    if not paths:
        raise Refused("report which run? Say one run folder or more: earlybert report RUN [RUN ...].")
    if len({path.resolve() for path in paths}) != len(paths):
        raise Refused("a run folder is named twice; name each once.")
    runs = told_apart([read(path) for path in paths])
    target = output or (paths[0] / PAGE if len(paths) == 1 else Path(PAGE))
    if target.is_dir():
        raise Refused(f"{target} is a folder; --output is the page, a file.")
    content = page(runs, [judge(run) for run in runs])
    write_atomically(target, content)
    say(f"report: {target} ({len(content) / 1e3:,.0f} kB)")
    for run in runs:
        for sentence in run.missing:
            say(f"note: {run.name}: {sentence}")
    if figures is not None:
        names = [run.name.replace("/", "-") for run in runs]
        for number, (run, name) in enumerate(zip(runs, names, strict=True), 1):
            unique = name if names.count(name) == 1 else f"{number}-{name}"
            folder = figures if len(runs) == 1 else figures / unique
            every = drawings(run, distance_maps(run), every_layer=True)
            written = [file for drawing in every for file in drawing.save(folder)]
            say(f"figures: {len(written)} files in {folder}")
    return target


def judge(run: RunRecord) -> Resampled:
    """What resampling the predictions in the folder says; nothing where there are none."""
    mine = _predictions(run.path)
    if mine is None:
        return Resampled()
    rival = _predictions(run.path / "dense_same_flops") if run.compare is not None else None
    metric = _headline(mine)
    against = None
    if rival is not None and metric is not None and np.array_equal(mine.labels, rival.labels):
        against = difference(
            [mine.values], [rival.values], mine.labels, metric, margin=0.0, classes=mine.classes
        ).to_dict()
    return Resampled(intervals(mine), against)


def intervals(predictions: Predictions) -> dict[str, tuple[float, float]]:
    """95 % interval of every score that can be resampled, under the names of `Predictions.score`.

    Where no resample differs from the others, as where all rows are right, nothing is known, and there is none.
    """
    if predictions.classes == 0:
        columns = {predictions.metrics[0]: predictions.values, **predictions.extra}
        found = {name: interval(values, predictions.labels, "mean") for name, values in columns.items()}
    else:
        known = [name for name in predictions.metrics if name in METRICS]
        values, labels, classes = predictions.values, predictions.labels, predictions.classes
        found = {name: interval(values, labels, name, classes=classes) for name in known}
    found = {name: (low, high) for name, (low, high) in found.items() if low < high}
    for part, other in predictions.also.items():
        found |= {f"{name}_{part}": around for name, around in intervals(other).items()}
    return found


def write_card(run: Run) -> None:
    """Write the model card of a run's model; a card that cannot be made is one line."""
    try:
        folder = read(run.path)
        write_atomically(run.model / NAME, card(folder, judge(folder)).encode())
    except Exception as error:  # the run is finished and its model is saved
        say(f"note: the model card could not be written ({first_line(error)})")


def write_report(run: RunFolder[Any]) -> None:
    """Write the page of a run that has ended; a page that cannot be made is one line."""
    try:
        report([run.path], output=run.report)
    except Exception as error:  # the run is finished and everything else is saved
        say(f"note: {run.report} could not be made ({first_line(error)}); try earlybert report {run.path}")


def _headline(predictions: Predictions) -> str | None:
    metric = "mean" if predictions.classes == 0 else predictions.metrics[0]
    return metric if metric in METRICS else None


def _predictions(folder: Path) -> Predictions | None:
    try:
        return Predictions.load(folder / "predictions.safetensors")
    except Refused:
        return None
