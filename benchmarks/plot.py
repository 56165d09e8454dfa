"""Draw step-time result files: one panel a model and shape, one bar a system, SVG beside each file.

python benchmarks/plot.py benchmarks/results/step_time_h100.json benchmarks/results/step_time_cpu.json

A bar is the median, its line the 10th to the 90th percentile, the mark the floor: FLOPs at the measured rate of matrix
products.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from earlybert.report.drawing import FAINT, FIRST, INK, SECOND, STYLE, THIRD
from earlybert.ticket.files import write_atomically

ROW, GAP = 0.24, 0.62
"""Height of a bar and of what stands around the bars of a panel, inches."""


def colour(system: str) -> str:
    """Stock, fast, and fast tickets apart."""
    return (
        FAINT
        if system.startswith("stock")
        else SECOND
        if "ticket" in system
        else THIRD
        if "search" in system
        else FIRST
    )


def panel(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """Bars from the first system down."""
    places = range(len(rows))
    medians = [row["median_ms"] for row in rows]
    spread = [[row["median_ms"] - row["p10_ms"] for row in rows], [row["p90_ms"] - row["median_ms"] for row in rows]]
    colours = [colour(row["system"]) for row in rows]
    axis.barh(places, medians, color=colours, xerr=spread, error_kw={"ecolor": INK, "lw": 0.8}, height=0.7)
    axis.scatter([row["floor_ms"] for row in rows], places, marker="|", s=90, color=INK, zorder=3)
    for place, row in zip(places, rows, strict=True):
        axis.annotate(
            f"{row['median_ms']:{',.0f' if row['median_ms'] >= 100 else '.3g'}}",
            (row["p90_ms"], place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    axis.set_yticks(places, [row["system"] for row in rows])
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlim(left=0)
    axis.set_title(f"{rows[0]['model']}, {rows[0]['shape']}", loc="left")


def draw(result: dict[str, Any]) -> Figure:
    """All panels of one file under one another."""
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        panels.setdefault((row["model"], row["shape"]), []).append(row)
    heights = [len(rows) * ROW + GAP for rows in panels.values()]
    figure = Figure(figsize=(7.0, sum(heights) + 0.5), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axis, rows in zip(axes.flat, panels.values(), strict=True):
        panel(axis, rows)
    axes.flat[-1].set_xlabel("ms a step")
    where = result["environment"]
    figure.suptitle(f"{where['device']}, torch {where['versions']['torch']}, {where['date'][:10]}", fontsize=9)
    return figure


def main() -> None:
    """One SVG beside each file; the same results give the same bytes."""
    for name in sys.argv[1:]:
        source, content = Path(name), io.BytesIO()
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": source.stem}):
            draw(json.loads(source.read_text())).savefig(content, format="svg", metadata={"Date": None})
        write_atomically(source.with_suffix(".svg"), content.getvalue())
        print(source.with_suffix(".svg"))


if __name__ == "__main__":
    main()
