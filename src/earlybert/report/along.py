"""Scores along a setting: a line for each value of another, and level lines to hold them against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .drawing import FAINT, FIRST, SECOND, THIRD, Drawing, drawn, empty

Points = Sequence[tuple[float, float, float]]
"""Value of the setting, score in points, its standard error."""
STYLES = (("o-", FIRST), ("s--", SECOND), ("^:", THIRD), ("D-.", FAINT))
LEVELS = ("-", "--", ":", "-.")


@drawn
def along(name: str, title: str, setting: str, lines: Mapping[str, Points], level: Mapping[str, float]) -> Drawing:
    """Draw them.

    Args:
        name: Of the files.
        title: What it is.
        setting: What runs along x; its values may be spread over decades.
        lines: Points by the name of their line.
        level: Scores that do not depend on the setting, by name.
    """
    figure = empty(3.2)
    axis = figure.add_subplot()
    for place, (label, points) in enumerate(lines.items()):
        mark, colour = STYLES[place % len(STYLES)]
        x, score, error = zip(*sorted(points), strict=True)
        axis.errorbar(x, score, yerr=error if any(error) else None, fmt=mark, color=colour, label=label, capsize=2)
    for place, (label, score) in enumerate(level.items()):
        axis.axhline(score, color=FAINT, linewidth=0.9, linestyle=LEVELS[place % len(LEVELS)], label=label)
    values = [point[0] for points in lines.values() for point in points]
    if min(values) > 0 and max(values) / min(values) > 3:
        axis.set_xscale("log")
        ticks = sorted(set(values))
        axis.set_xticks(ticks, [f"{value:g}" for value in ticks], minor=False)
        axis.set_xticks([], minor=True)
    axis.set_xlabel(setting.replace("_", " "))
    axis.set_ylabel("score, points")
    axis.grid(alpha=0.4)
    axis.legend(fontsize=7)
    about = "; ".join(
        f"{label}: " + ", ".join(f"{score:.1f} at {x:g}" for x, score, _ in sorted(points))
        for label, points in lines.items()
    )
    return Drawing(name, title, about, figure)
