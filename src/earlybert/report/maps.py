"""Maps: how far masks of different steps are apart (Fig. 1), and which heads stayed."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ..ticket import History, Scores, Ticket
from ..ticket.history import Kind
from .drawing import FAINT, FIRST, GRID, INK, SECOND, WIDTH, Drawing, drawn, empty
from .folder import RunRecord

COLOURS = "cividis"
"""Dark for masks that are close, as in Fig. 1; reads the same to colour-blind eyes and in grey."""
MOST_STEPS = 60
"""Steps along a side of a map; a longer search is sampled."""
LEVELS = 255


@dataclass(frozen=True)
class DistanceMap:
    """Mask distance between sampled steps of a search (Sec. 3.3)."""

    kind: Kind
    steps: NDArray[np.int64]
    """Optimizer steps finished, `[steps]`."""
    per_layer: NDArray[np.float64]
    """`[layers, steps, steps]`, symmetric, 0 on the diagonal."""
    removed: str
    """How much goes, in words."""

    @classmethod
    def of(cls, history: History, kind: Kind, config: dict[str, Any], most: int = MOST_STEPS) -> DistanceMap:
        """Masks as the run would have drawn them, unaligned.

        Raises:
            Refused: The run's settings do not fit its history.
        """
        last = len(history)
        steps = np.unique(np.round(np.linspace(1, last, min(last, most))).astype(np.int64))
        remove, scope = config[kind], config[f"{kind}_scope"]
        distances = history.distances(kind, remove, steps=steps.tolist(), scope=scope)
        much = f"{remove:.0%}" if isinstance(remove, float) else f"{remove:,}"
        where = "of each layer" if scope == "layer" else "over all layers"
        return cls(kind, steps, np.moveaxis(distances, 2, 0), f"{much} {where} removed")

    @property
    def overall(self) -> NDArray[np.float64]:
        """All layers together, `[steps, steps]`; layers are of one size."""
        return self.per_layer.mean(axis=0)

    @property
    def top(self) -> float:
        """The largest distance, the light end of the colours, for every layer alike."""
        return max(float(self.per_layer.max()), 0.01)

    def payload(self) -> dict[str, Any]:
        """JSON for the layer selector: the upper triangle of each map, row by row, a byte a distance.

        The first map is that of all layers together.
        """
        triangle = np.triu_indices(len(self.steps))
        levels = [
            np.round(layer[triangle] / self.top * LEVELS).astype(np.uint8) for layer in (self.overall, *self.per_layer)
        ]
        return {
            "steps": self.steps.tolist(),
            "top": self.top,
            "maps": [base64.b64encode(level.tobytes()).decode() for level in levels],
        }


def ending(scores: Scores | None, steps: int) -> str:
    """Why a search ended, in words."""
    if scores is None:
        return f"step {steps}, the last one so far"
    why = {"settled": "the mask had settled", "cap": "it was as long as asked for", "data": "there was no more data"}
    return f"stopped after {steps} steps: {why.get(str(scores.info.get('ended')), 'no reason was noted')}"


@drawn
def mask_distance_map(of: DistanceMap, scores: Scores | None, *, layer: int | None = None) -> Drawing:
    """Fig. 1 for all layers together, or for one of them (counted from 0); the end of the search is marked."""
    shown = of.overall if layer is None else of.per_layer[layer]
    figure = empty(3.6)
    axis = figure.add_subplot()
    last = int(of.steps[-1])
    half = (last - 1) / max(1, len(of.steps) - 1) / 2
    extent = (1 - half, last + half, 1 - half, last + half)
    picture = axis.imshow(
        shown, cmap=COLOURS, vmin=0, vmax=of.top, origin="lower", extent=extent, interpolation="none", gid="map"
    )
    reach = last + half + 0.04 * last
    axis.plot([last, last, 1 - half], [1 - half, last, last], color=SECOND, linestyle="--", linewidth=1, gid="stop")
    axis.plot(
        last, last, marker="*", markersize=11, color=SECOND, markeredgecolor=INK, markeredgewidth=0.5, clip_on=False
    )
    axis.set_xlim(1 - half, reach)
    axis.set_ylim(1 - half, reach)
    axis.set_xlabel("number of training steps finished")
    axis.set_ylabel("number of training steps finished")
    figure.suptitle(f"★ {ending(scores, last)}", fontsize=8.5, color=FAINT)
    figure.colorbar(picture, ax=axis, label="mask distance (darker is closer)", shrink=0.8)
    place = "" if layer is None else f"-layer-{layer + 1}"
    middle = len(of.steps) // 2
    about = (
        f"Share of the {of.kind} mask that differs between any two steps of the search, {of.removed}. "
        f"From its last mask, the first differs by {shown[0, -1]:.2f} and that of step {of.steps[middle]} by "
        f"{shown[middle, -1]:.2f}; {ending(scores, last)}."
    )
    return Drawing(f"mask-distance-{of.kind}{place}", f"Mask distance, {of.kind}", about, figure)


@drawn
def heads_map(run: RunRecord) -> Drawing:
    """Heads kept, layers x heads; hovering gives the score. For a run with a ticket."""
    ticket, scores = run.ticket, run.importance
    assert ticket is not None
    figure = empty(max(1.6, 0.9 + WIDTH * 0.8 * ticket.layers / max(12, ticket.num_heads)))
    axis = figure.add_subplot()
    tips: dict[str, str] = {}
    for layer in range(ticket.layers):
        for head in range(ticket.num_heads):
            kept = head in ticket.heads[layer]
            name = f"head-{layer}-{head}"
            axis.add_patch(
                Rectangle(
                    (head + 0.54, layer + 0.54),
                    0.92,
                    0.92,
                    gid=name,
                    facecolor=FIRST if kept else "none",
                    edgecolor=FIRST if kept else GRID,
                    linewidth=0.8,
                )
            )
            tips[name] = head_tip(ticket, scores, layer, head)
    axis.set_xlim(0.5, ticket.num_heads + 0.5)
    axis.set_ylim(ticket.layers + 0.5, 0.5)
    axis.set_aspect("equal")
    axis.set_xticks(range(1, ticket.num_heads + 1))
    axis.set_yticks(range(1, ticket.layers + 1))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("head")
    axis.set_ylabel("layer")
    about = (
        f"{ticket.heads_kept} of {ticket.layers * ticket.num_heads} heads stay: the filled squares. Hover for "
        "the score; the table below has them all."
    )
    return Drawing("heads-kept", "Heads kept", about, figure, tips)


def head_tip(ticket: Ticket, scores: Scores | None, layer: int, head: int) -> str:
    """One head in words, layers and heads counted from 1."""
    state = "kept" if head in ticket.heads[layer] else "removed"
    if scores is None:
        return f"layer {layer + 1}, head {head + 1}: {state}"
    what = "coefficient" if scores.source == "coefficients" else f"{scores.source} score"
    return f"layer {layer + 1}, head {head + 1}: {state}, {what} {scores.heads[layer][head]:.6g}"
