"""Score against cost: what a ticket has to beat is the line through the dense runs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """One method on one task."""

    cost: float
    """FLOPs of search and training, of those of the method that costs are relative to."""
    score: float
    """Mean over seeds, in points."""
    error: float
    """Standard error of that mean, in points; 0 with one seed."""
    dense: bool
    """Whether it is the dense model, stopped somewhere."""


MARKERS = "osD^vPX*<>hpd"


def frontier(panels: Mapping[str, Mapping[str, Point]], *, reference: str, title: str = "") -> bytes:
    """An SVG with a panel a task: methods as marks, the dense runs joined by a line.

    Args:
        panels: By task, points by the name of their method.
        reference: Name of the method that costs are relative to.
        title: Above all panels.
    """
    names = list(dict.fromkeys(name for points in panels.values() for name in points))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.2 * across, 3.4 * down + 0.8))
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (task, points) in zip(axes.flat, panels.items(), strict=False):
        _panel(axis, task, points, names)
        axis.set_xlabel(f"training FLOPs, of {reference}")
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=min(4, len(handles)), frameon=False)
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0.06 + 0.05 * (len(handles) // 4) / down, 1, 1))
    text = io.BytesIO()
    # No date and no random names inside: the same results give the same bytes.
    with rc_context({"svg.hashsalt": "frontier"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _panel(axis: Axes, task: str, points: Mapping[str, Point], names: list[str]) -> None:
    line = sorted((point.cost, point.score) for point in points.values() if point.dense)
    if len(line) > 1:
        axis.plot(*zip(*line, strict=True), color="0.7", linewidth=1.5, zorder=1)
    colours = colormaps["tab10"]
    for name, point in points.items():
        place = names.index(name)
        axis.errorbar(
            point.cost,
            point.score,
            yerr=point.error or None,
            fmt=MARKERS[place % len(MARKERS)],
            color="0.35" if point.dense else colours(place % 10),
            capsize=3,
            label=name,
        )
    axis.set_title(task)
    axis.set_ylabel("score, points")
    axis.grid(alpha=0.3)
