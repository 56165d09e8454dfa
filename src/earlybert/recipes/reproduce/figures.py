"""Pictures of a table: score against cost, scores along a setting, mask distances."""

from __future__ import annotations

from pathlib import Path

from ...report.along import along
from ...report.maps import DistanceMap, mask_distance_map
from ...ticket import History
from ...ticket.files import write_atomically
from ...ticket.history import Kind
from ..compare import PLOT
from ..comparison.verdict import Verdicts, mean_over_tasks
from ..run import Run
from .claims import Runs
from .experiment import Experiment


def figures(each: Experiment, runs: Runs, verdicts: Verdicts, output: Path) -> list[str]:
    """Write the pictures of a table beside its record.

    Returns:
        Names of the SVG files.
    """
    if each.maps:
        return _maps(each, runs, output)
    if each.plot:
        return _along(each, verdicts, output)
    plot = output / each.name / PLOT
    if not plot.exists():
        return []
    write_atomically(output / f"{each.name}.svg", plot.read_bytes())
    return [f"{each.name}.svg"]


def _along(each: Experiment, verdicts: Verdicts, output: Path) -> list[str]:
    x, lines = each.plot["x"], each.plot.get("lines")
    points: dict[str, list[tuple[float, float, float]]] = {}
    flat: dict[str, float] = {}
    for row, by_task in verdicts.items():
        score = mean_over_tasks([found.mean for found in by_task.values()])
        if score is None:
            continue
        settings = each.comparison.methods[row]
        if x in settings:
            error = sum(found.error**2 for found in by_task.values()) ** 0.5 / len(by_task)
            name = f"{settings[lines]:g} {lines}" if lines else "ticket"
            points.setdefault(name, []).append((float(settings[x]), 100 * score, 100 * error))
        else:
            flat[row] = 100 * score
    if not points:
        return []
    drawing = along(each.name, f"{each.title}: {each.caption}", x, points, flat)
    drawing.save(output)
    return [f"{each.name}.svg"]


def _maps(each: Experiment, runs: Runs, output: Path) -> list[str]:
    written: list[str] = []
    for folder in runs.folders(each.maps["row"])[:1]:
        run = Run.open(folder)
        history = History(run.history)
        shown: dict[Kind, int | None] = {"heads": None, "neurons": int(each.maps["layer"]) - 1}
        for kind, layer in shown.items():
            remove = {kind: getattr(run.config, kind), f"{kind}_scope": getattr(run.config, f"{kind}_scope")}
            drawing = mask_distance_map(DistanceMap.of(history, kind, remove), None, layer=layer)
            for file in drawing.save(output):
                final = file.with_name(f"{each.name}-{kind}{file.suffix}")
                file.replace(final)
                if final.suffix == ".svg":
                    written.append(final.name)
    return written
