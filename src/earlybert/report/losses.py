"""Held-out loss over steps and over time, a line a run; mask distances of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .drawing import FIRST, INK, SECOND, THIRD, Drawing, drawn, empty

COLOURS = (INK, FIRST, SECOND, THIRD)
LINES = ("-", "--", ":", "-.")


@drawn
def loss_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Drawing:
    """Held-out loss over optimizer steps, and over seconds of training; searches are part of both.

    Args:
        curves: By run: points with `step`, `seconds` and `mlm_loss`.
    """
    figure = empty(5.0 + 0.2 * len(curves))
    axes = figure.subplots(2, 1, sharey=True)
    for number, (name, points) in enumerate(curves.items()):
        style = {"color": COLOURS[number % 4], "linestyle": LINES[number // 4 % 4], "marker": "o", "markersize": 2.5}
        for axis, key in zip(axes, ("step", "seconds"), strict=True):
            axis.plot([p[key] for p in points], [p["mlm_loss"] for p in points], label=name, linewidth=1.2, **style)
    for axis, label in zip(axes, ("optimizer steps", "seconds of wall-clock time"), strict=True):
        axis.set_xlabel(f"{label}, search included")
        axis.set_ylabel("held-out loss")
        axis.grid(axis="y")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=2, fontsize=8)
    ends = "; ".join(f"{name} {points[-1]['mlm_loss']:.3f}" for name, points in curves.items())
    about = f"Loss of masked tokens on held-out documents while training. At the end: {ends}."
    return Drawing("losses", "Held-out loss of pre-training", about, figure)


@drawn
def distance_curves(distances: Mapping[str, Mapping[str, Sequence[float]]]) -> Drawing:
    """How far the mask moves from one check to the next, and how far it is from the last mask.

    Args:
        distances: By kind: `steps`, `to_last` and `to_next`.
    """
    figure = empty(1.0 + 2.0 * len(distances))
    axes = figure.subplots(len(distances), 1, sharex=True, squeeze=False)[:, 0]
    said: list[str] = []
    for axis, (kind, found) in zip(axes, distances.items(), strict=True):
        axis.plot(found["steps"], found["to_last"], color=FIRST, label="to the last mask")
        axis.plot(found["steps"][1:], found["to_next"], color=SECOND, label="from the check before")
        axis.set_ylabel(f"mask distance, {kind}")
        axis.set_ylim(bottom=0)
        axis.grid(axis="y")
        said.append(f"{kind}: {found['to_next'][0]:.3f} between the first two, {found['to_next'][-1]:.3f} at the end")
    axes[0].legend(fontsize=8)
    axes[-1].set_xlabel("number of training steps finished")
    about = f"Share of the mask that differs between checks of the search. From check to check, {'; '.join(said)}."
    return Drawing("mask-distance", "How the mask moves during the search", about, figure)
