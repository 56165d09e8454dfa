"""The report: one HTML file with everything inside, that asks nobody for anything."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__
from ..anatomy import Refused
from . import curves, losses, maps, numbers, pretraining
from .drawing import Drawing
from .folder import RunRecord
from .headline import Headline, headline
from .maps import DistanceMap
from .numbers import Resampled, Table

MOST_BYTES = 2_000_000
"""Of a page."""
MAP_BYTES = 600_000
"""Of the data behind the layer selectors of all runs together; more runs are sampled at fewer steps."""


@dataclass(frozen=True)
class Shown:
    """A drawing on the page."""

    name: str
    title: str
    about: str
    svg: Markup
    layers: int = 0
    """For a map with a layer selector: how many there are."""
    removed: str = ""


@dataclass(frozen=True)
class Section:
    """What the page says of one run."""

    place: str
    run: RunRecord
    headline: Headline
    missing: tuple[str, ...]
    tables: list[Table]
    figures: list[Shown]
    maps: dict[str, Any]
    """Data of the layer selectors, by kind."""
    heads: list[tuple[int, list[tuple[str, str]]]]
    """Layer, and for each of its heads whether it is kept and its score."""
    settings: list[tuple[str, str, bool]]
    command: str


def page(runs: Sequence[RunRecord], judged: Sequence[Resampled]) -> bytes:
    """The whole page.

    Args:
        runs: In the order they are shown.
        judged: What resampling says of each.

    Raises:
        Refused: So many runs do not fit on a page.
    """
    most = _samples(runs)
    sections = [
        _section(f"run-{number}", run, about, most, runs) for number, (run, about) in enumerate(zip(runs, judged), 1)
    ]
    colours = (matplotlib.colormaps[maps.COLOURS](np.arange(maps.LEVELS + 1))[:, :3] * 255).round().astype(np.uint8)
    environment = _templates()
    text = environment.get_template("report.html.jinja").render(
        title=_title(runs),
        sections=sections,
        overview=numbers.overview(runs, judged),
        together=_together(runs),
        colours=base64.b64encode(colours.tobytes()).decode(),
        version=__version__,
        script=Markup(environment.get_template("report.js").render()),
        style=Markup(environment.get_template("report.css").render()),
    )
    content = text.encode()
    if len(content) > MOST_BYTES:
        raise Refused(
            f"a report of {len(runs)} runs would have {len(content) / 1e6:.1f} MB, over 2 MB; report fewer at once."
        )
    return content


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("earlybert.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def drawings(run: RunRecord, distances: Sequence[DistanceMap], *, every_layer: bool = False) -> Iterator[Drawing]:
    """Every figure that the run has the data for, in the order of the page.

    Args:
        run: The run.
        distances: Its `distance_maps`.
        every_layer: Mask-distance maps of single layers, too; on the page the selector shows them.
    """
    for distance in distances:
        yield maps.mask_distance_map(distance, run.scores)
        for layer in range(len(distance.per_layer)) if every_layer else ():
            yield maps.mask_distance_map(distance, run.scores, layer=layer)
    if run.ticket is not None:
        yield maps.heads_map(run)
        yield curves.neurons_bars(run)
    if run.history is not None:
        for kind in ("heads", "neurons"):
            yield curves.coefficient_histograms(run.history, kind)
    for stage in ("search", "train"):
        if sum("loss" in line and line["stage"] == stage for line in run.steps) > 1:
            yield curves.stage_curves(run, stage)
    points = pretraining.curve(run)
    if len(points) > 1:
        yield losses.loss_curves({run.name: points})
    spent = _spent(run)
    if any(stages for _, stages in spent):
        yield curves.time_bar(spent)
    if parts := numbers.step_parts(run):
        yield curves.parts_bars(parts)
    left = numbers.shares_left(numbers.before_and_after(run))
    if left:
        yield curves.size_bars(left)


def distance_maps(run: RunRecord, most: int = maps.MOST_STEPS) -> list[DistanceMap]:
    """Of heads and neurons; none when the run's settings do not fit its history, or are not known."""
    if run.history is None:
        return []
    try:
        return [DistanceMap.of(run.history, kind, run.config, most) for kind in ("heads", "neurons")]
    except (Refused, KeyError, TypeError, ValueError):
        return []


def _section(place: str, run: RunRecord, judged: Resampled, most: int, beside: Sequence[RunRecord]) -> Section:
    missing = list(run.missing)
    distances = {distance.kind: distance for distance in distance_maps(run, most)}
    if run.history is not None and not distances:
        missing.append("config.yaml does not fit history.bin: there are no mask distances.")
    shown: list[Shown] = []
    for drawing in drawings(run, list(distances.values())):
        kind = drawing.name.removeprefix("mask-distance-")
        distance = distances.get(kind) if kind != drawing.name else None  # pyright: ignore[reportArgumentType]
        svg = Markup(drawing.inline(f"{place}-{drawing.name}"))
        shown.append(
            Shown(
                drawing.name,
                drawing.title,
                drawing.about,
                svg,
                len(distance.per_layer) if distance else 0,
                distance.removed if distance else "",
            )
        )
    tables = [numbers.times(run), numbers.parts(run), numbers.before_and_after(run), numbers.memory(run)]
    if run.compare is not None:
        tables = [numbers.rivals(run.compare), numbers.saving(run.compare), *tables]
    if run.pretraining and run.metrics is not None:
        tables = [pretraining.held_out(run), pretraining.speeds(run), *tables]
        said = pretraining.headline(run, beside)
    else:
        said = headline(run, judged)
    return Section(
        place=place,
        run=run,
        headline=said,
        missing=tuple(missing),
        tables=[table for table in tables if table.rows],
        figures=shown,
        maps={kind: distance.payload() for kind, distance in distances.items()},
        heads=_heads(run),
        settings=numbers.settings(run),
        command=numbers.command(run),
    )


def _together(runs: Sequence[RunRecord]) -> Shown | None:
    """Held-out loss of several pre-training runs in one figure, where their losses compare."""
    scored = [run for run in runs if run.pretraining and run.metrics is not None]
    curved = {run.name: points for run in scored if len(points := pretraining.curve(run)) > 1}
    if len(curved) < 2 or len({pretraining.scored_on(run) for run in scored}) > 1:
        return None
    drawing = losses.loss_curves(curved)
    svg = Markup(drawing.inline(f"side-by-side-{drawing.name}"))
    return Shown(drawing.name, drawing.title, drawing.about, svg)


def _spent(run: RunRecord) -> list[tuple[str, dict[str, float]]]:
    if run.compare is None:
        return [(run.method, curves.seconds_by_stage(run.metrics, run))]
    rows = run.compare["rows"]
    return [(name, curves.seconds_by_stage(rows[key], run)) for key, name in numbers.RIVAL_NAMES.items()]


def _heads(run: RunRecord) -> list[tuple[int, list[tuple[str, str]]]]:
    if run.ticket is None:
        return []
    ticket, scores = run.ticket, run.importance
    return [
        (
            layer + 1,
            [
                (
                    "kept" if head in ticket.heads[layer] else "removed",
                    "" if scores is None else f"{scores.heads[layer][head]:.6g}",
                )
                for head in range(ticket.num_heads)
            ],
        )
        for layer in range(ticket.layers)
    ]


def _samples(runs: Sequence[RunRecord]) -> int:
    """Steps along the side of a map, so that the maps of all runs stay within their bytes."""
    layers = sum(2 * (run.history.layers + 1) for run in runs if run.history is not None)
    if not layers:
        return maps.MOST_STEPS
    a_map = MAP_BYTES / layers * 3 / 4  # base64 takes four letters for three bytes
    return max(12, min(maps.MOST_STEPS, int((2 * a_map) ** 0.5) - 1))


def _title(runs: Sequence[RunRecord]) -> str:
    names = [f"{run.task} ({run.name})" for run in runs]
    return f"{len(runs)} runs: {', '.join(names)}" if len(runs) > 1 else names[0]
