"""Curves and bars: loss and learning rate, coefficients over time, neurons by layer, where the time went, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from ..ticket import History
from ..ticket.history import Kind
from ..train.profile import PARTS, WHOLE
from ..train.steplog import STAGES
from .drawing import FAINT, FIRST, GRID, INK, SECOND, THIRD, Drawing, drawn, empty
from .folder import RunRecord
from .maps import MOST_STEPS
from .numbers import second_phase

MOST_POINTS = 300
"""Points of a curve; longer ones are means over neighbouring steps."""
BINS = 48
DENSITY = ListedColormap([(*to_rgb(FIRST), 0.15 + 0.85 * share) for share in np.linspace(0, 1, 64)])
"""Rare values are pale on a light page and on a dark one."""


@drawn
def stage_curves(run: RunRecord, stage: str) -> Drawing:
    """Loss and learning rate of the search or of training."""
    lines = [line for line in run.steps if line["stage"] == stage and "loss" in line and "lr" in line]
    steps, losses, rates = (np.array([line[key] for line in lines], dtype=float) for key in ("step", "loss", "lr"))
    figure = empty(3.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    x, y = thinned(steps, losses)
    above.plot(x, y, color=GRID, linewidth=0.8)
    width = max(1, len(y) // 12)
    smooth = np.convolve(y, np.ones(width) / width, mode="valid")
    above.plot(x[width - 1 :], smooth, color=FIRST, linewidth=1.6)
    above.set_ylabel("loss")
    above.grid(axis="y")
    below.plot(*thinned(steps, rates), color=SECOND, linewidth=1.6)
    below.set_ylabel("learning rate")
    below.set_xlabel(f"optimizer step ({stage})")
    below.set_ylim(bottom=0)
    below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    below.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    second = second_phase(run) if stage == "train" else None
    if second is not None:
        for axis in (above, below):
            axis.axvline(steps[second] - 0.5, color=FAINT, linestyle="--", linewidth=0.8)
        top = above.get_xaxis_transform()
        above.text(steps[second], 0.98, " phase 2", transform=top, va="top", fontsize=8, color=FAINT)
    name = {"search": "search", "train": "training"}[stage]
    about = (
        f"{len(lines)} steps; loss from {losses[0]:.3f} to {losses[-1]:.3f} (thin: steps, thick: mean over {width} "
        f"points), learning rate at most {rates.max():.2g}."
    )
    if second is not None:
        about += f" Phase 2 begins with step {steps[second]:.0f}, at the dashed line."
    return Drawing(f"curves-{stage}", f"Loss and learning rate of the {name}", about, figure)


def thinned(
    x: NDArray[np.float64], y: NDArray[np.float64], most: int = MOST_POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most so many points, each the mean of neighbours; `[points]` both."""
    if len(x) <= most:
        return x, y
    parts = np.array_split(np.arange(len(x)), most)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


@drawn
def coefficient_histograms(history: History, kind: Kind) -> Drawing:
    """How the coefficients spread during the search: a histogram a step, side by side."""
    last = len(history)
    steps = np.unique(np.round(np.linspace(1, last, min(last, MOST_STEPS))).astype(int))
    values = np.stack([history.coefficients(int(step), kind).ravel() for step in steps])  # [steps, layers * units]
    low, high = float(values.min()), float(values.max())
    margin = max(1e-6, 0.02 * (high - low))
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    counts = np.stack([np.histogram(row, edges)[0] for row in values], axis=1)  # [bins, steps]
    shares = np.ma.masked_equal(counts / values.shape[1], 0)
    figure = empty(2.9)
    axis = figure.add_subplot()
    half = (last - 1) / max(1, len(steps) - 1) / 2
    picture = axis.imshow(
        shares,
        aspect="auto",
        origin="lower",
        extent=(1 - half, last + half, edges[0], edges[-1]),
        cmap=DENSITY,
        norm=LogNorm(vmin=1 / values.shape[1], vmax=1),
        interpolation="none",
    )
    axis.plot(steps, np.median(values, axis=1), color=SECOND, linewidth=1.4, label="median")
    axis.legend(loc="lower left", fontsize=8)
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.set_xlabel("number of training steps finished")
    axis.set_ylabel("coefficient")
    figure.colorbar(picture, ax=axis, label=f"share of the {kind}", format=lambda share, _: f"{100 * share:g}%")
    about = (
        f"Every step's histogram of the coefficients of the {kind}, which start at 1; after {last} steps they lie "
        f"between {values[-1].min():.5f} and {values[-1].max():.5f}, median {np.median(values[-1]):.5f}."
    )
    return Drawing(f"coefficients-{kind}", f"Coefficients of the {kind} over time", about, figure)


@drawn
def neurons_bars(run: RunRecord) -> Drawing:
    """Neurons kept in each layer, of those there were. For a run with a ticket."""
    ticket = run.ticket
    assert ticket is not None
    counts = [len(kept) for kept in ticket.neurons]
    figure = empty(max(1.8, 0.9 + 0.24 * ticket.layers))
    axis = figure.add_subplot()
    places = range(1, ticket.layers + 1)
    axis.barh(places, [ticket.num_neurons] * ticket.layers, color="none", edgecolor=GRID)
    tips: dict[str, str] = {}
    for layer, (bar, kept) in enumerate(zip(axis.barh(places, counts, color=FIRST), counts, strict=True)):
        bar.set_gid(f"neurons-{layer}")
        tips[f"neurons-{layer}"] = f"layer {layer + 1}: {kept:,} of {ticket.num_neurons:,} neurons kept"
        _beside(axis, kept, layer + 1, f"{kept:,}")
    axis.set_ylim(ticket.layers + 0.6, 0.4)
    axis.set_yticks(list(places))
    axis.set_xlim(0, ticket.num_neurons * 1.02)
    axis.set_xlabel(f"neurons kept, of {ticket.num_neurons:,}")
    axis.set_ylabel("layer")
    total = ticket.layers * ticket.num_neurons
    about = f"{ticket.neurons_kept:,} of {total:,} neurons stay; by layer: {', '.join(f'{n:,}' for n in counts)}."
    return Drawing("neurons-kept", "Neurons kept in each layer", about, figure, tips)


@drawn
def time_bar(runs: Sequence[tuple[str, dict[str, float]]]) -> Drawing:
    """Seconds of search, scoring, draw and train, a bar a run or rival."""
    colours: dict[str, str] = dict(zip(STAGES, (SECOND, THIRD, INK, FIRST), strict=True))
    figure, tips, about = _stacked("time", runs, colours, "s")
    figure.axes[0].set_xlabel("seconds of training, data loading left out")
    return Drawing("time", "Where the time went", about, figure, tips)


@drawn
def parts_bars(by_stage: dict[str, dict[str, float]]) -> Drawing:
    """Seconds of each part of a step, a bar a stage. `by_stage` is `numbers.step_parts` of a run."""
    words = {part: "one graph" if part == WHOLE else part for part in PARTS}
    colours = dict(zip(words.values(), (FAINT, FIRST, SECOND, THIRD, INK), strict=True))
    bars = [(stage, {words[part]: 1e3 * took for part, took in parts.items()}) for stage, parts in by_stage.items()]
    figure, tips, about = _stacked("part", bars, colours, "ms")
    figure.axes[0].set_xlabel("milliseconds of a step, profiled")
    if any(WHOLE in parts for parts in by_stage.values()):
        about += "; a whole step that is one CUDA graph has no parts to time"
    about += ". Medians of a few extra steps; what ran in the run itself was not slowed to be timed in parts."
    return Drawing("step-parts", "A step taken apart", about, figure, tips)


def _stacked(
    gid: str, bars: Sequence[tuple[str, dict[str, float]]], colours: Mapping[str, str], unit: str
) -> tuple[Figure, dict[str, str], str]:
    """A bar for each name, its pieces in the order of `colours`; also what hovering says, and a description."""
    figure = empty(1.25 + 0.42 * len(bars))
    axis = figure.add_subplot()
    tips: dict[str, str] = {}
    for place, (name, pieces) in enumerate(bars):
        left = 0.0
        for piece in (piece for piece in colours if piece in pieces):
            its, took = f"{gid}-{place}-{piece}".replace(" ", "-"), pieces[piece]
            axis.barh(place, took, left=left, color=colours[piece], height=0.6, label=piece)[0].set_gid(its)
            tips[its] = f"{name}: {piece} {took:.3g} {unit}, {took / sum(pieces.values()):.0%}"
            left += took
        _beside(axis, left, place, f"{left:.3g} {unit}")
    axis.set_yticks(range(len(bars)), [name for name, _ in bars])
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.set_xlim(0, 1.18 * (max(sum(pieces.values()) for _, pieces in bars) or 1.0))
    found = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(found.values(), found.keys(), loc="outside upper left", ncols=4, fontsize=8)
    about = "; ".join(
        f"{name}: " + ", ".join(f"{piece} {took:.3g} {unit}" for piece, took in pieces.items()) for name, pieces in bars
    )
    return figure, tips, about


@drawn
def size_bars(after: dict[str, float]) -> Drawing:
    """What is left of the dense model, each as a share of it."""
    figure = empty(0.9 + 0.36 * len(after))
    axis = figure.add_subplot()
    places = range(len(after))
    axis.barh(places, [1.0] * len(after), color="none", edgecolor=GRID, height=0.6)
    tips: dict[str, str] = {}
    for place, (bar, (name, share)) in enumerate(
        zip(axis.barh(places, list(after.values()), color=THIRD, height=0.6), after.items(), strict=True)
    ):
        bar.set_gid(f"size-{place}")
        tips[f"size-{place}"] = f"{name}: {share:.1%} of the dense model"
        _beside(axis, share, place, f"{share:.0%}")
    axis.set_yticks(list(places), list(after))
    axis.set_ylim(len(after) - 0.4, -0.6)
    axis.set_xlim(0, max(1.0, *after.values()) * 1.12)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xlabel("of the dense model")
    about = "Of the dense model: " + ", ".join(f"{name} {share:.1%}" for name, share in after.items()) + "."
    return Drawing("size", "Before and after", about, figure, tips)


def seconds_by_stage(of: dict[str, Any] | None, run: RunRecord) -> dict[str, float]:
    """Seconds of each stage: of metrics, or of the steps so far."""
    if of is None:
        return {stage: sums.seconds for stage, sums in run.stages.items()}
    return {stage: float(of["stages"][stage]["seconds"]) for stage in STAGES if stage in of["stages"]}


def _beside(axis: Axes, x: float, y: float, text: str) -> None:
    """What a bar that ends at `x` says at its end."""
    axis.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
