"""Run a comparison, and write one table a person can trust."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ..anatomy import Refused
from ..config.finetune import Finetune
from ..config.recipe import with_recipe
from ..ticket import load
from ..ticket.files import write_atomically
from .comparison.comparison import Comparison, cell_name
from .comparison.overlap import overlap_sheet
from .comparison.sheets import sheets
from .comparison.store import link
from .comparison.tuning import tuned
from .comparison.verdict import Verdicts, judge, mean_over_tasks, reference_row
from .display import display, say
from .finetuning.bench import Bench
from .finetuning.timing import inference_seconds
from .grid import GRID, Outcome, run_grid
from .machine import refuse_launcher
from .run import Run
from .trackers import require

GIVEN, RESULT, TABLES, PLOT = "compare.yaml", "compare.json", "compare.md", "compare.svg"
INFERENCE, METRICS = "inference.json", "metrics.json"


def compare(
    comparison: Comparison, folder: Path, *, store: Path | None = None, inference: bool = True
) -> tuple[Comparison, Verdicts]:
    """Run what is not done yet, and write the tables. Called again, it goes on where it stopped.

    Args:
        comparison: What to compare. Rows, tasks and seeds may be added to one that is there.
        folder: Its runs, `compare.yaml`, `compare.json`, `compare.md` and `compare.svg`.
        store: Where runs lie that other comparisons may share; in the folder itself when None.
        inference: Whether to time the trained models.

    Returns:
        The comparison, tuned, and what it came to.

    Raises:
        Refused: The folder holds something else, a run in it was made with other settings, the model or the data of
            a run that is still to be done cannot be used, every run failed, or a launcher has started several
            processes.
    """
    refuse_launcher(GRID)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / GIVEN).exists():
        raise Refused(f"{folder} exists and is not a comparison; choose another --output.")
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is a file; choose another --output.")
    require(comparison.settings.get("tracker", "none"))
    _refuse_unusable(comparison, folder)
    text = yaml.safe_dump(comparison.to_dict(), sort_keys=False, allow_unicode=True)
    if not (folder / GIVEN).exists():
        write_atomically(folder / GIVEN, text.encode())
    say(
        f"{len(comparison.methods)} methods x {len(comparison.tasks)} tasks x {len(comparison.seeds)} seeds: "
        f"{len(comparison.cells())} runs in {folder}; not inferior means at most {comparison.margin:g} points worse"
    )
    try:
        comparison = tuned(comparison, folder)
        if store is not None:
            link(comparison.cells(), folder, store)
        outcomes = run_grid(comparison.cells(), folder, jobs=comparison.jobs)
    except KeyboardInterrupt as stop:  # of one run: the whole comparison is what goes on, with what was added to it
        write_atomically(folder / GIVEN, text.encode())
        raise type(stop)(f"earlybert compare --config {folder / GIVEN} --output {folder}") from None
    write_atomically(folder / GIVEN, text.encode())  # not before: what the runs refuse changes nothing
    failures = [outcome.failure for outcome in outcomes.values() if outcome.metrics is None]
    if len(failures) == len(outcomes):
        raise Refused(f"every run failed, so there is nothing to compare; the first one: {failures[0]}")
    verdicts = judge(comparison, folder, outcomes)
    try:
        times = _inference(comparison, folder, outcomes) if inference and comparison.times else {}
    except Refused as error:
        say(f"no inference times: {error}")
        times = {}
    _write(comparison, folder, outcomes, verdicts, times)
    return comparison, verdicts


def _refuse_unusable(comparison: Comparison, folder: Path) -> None:
    """Read what the runs that are still to be done begin with, before the first of them: each task for each model."""
    read: set[tuple[str, str]] = set()
    for task in comparison.tasks:
        for row in comparison.methods:
            if comparison.needs(row) is not None:  # begins with what that row read
                continue
            runs = [folder / cell_name(task, row, seed) for seed in comparison.seeds]
            settings = comparison.settings_of(task, row, comparison.seeds[0])
            key = (task, settings.get("model", Finetune.model))
            if key not in read and not all((run / METRICS).exists() for run in runs):
                Bench.set_up(Finetune(**with_recipe(dict(settings))), reuse=True)
                read.add(key)


def _inference(comparison: Comparison, folder: Path, outcomes: Mapping[str, Outcome]) -> dict[str, dict[str, float]]:
    """Milliseconds a row of the first seed's models, by task and method; measured once for the runs that there are.

    Rows of another model, length or precision than the reference read other tokens and are left out.
    """
    seed, reference = comparison.seeds[0], reference_row(comparison)
    file = folder / INFERENCE
    known: dict[str, dict[str, Any]] = json.loads(file.read_bytes()) if file.exists() else {}
    for task in comparison.tasks:
        like = _reads(comparison, task, reference)
        names = [
            row
            for row in comparison.methods
            if outcomes[cell_name(task, row, seed)].metrics is not None and _reads(comparison, task, row) == like
        ]
        newest = max((_date(outcomes[cell_name(task, row, seed)]) for row in names), default="")
        if not names or (set(known.get(task, {})) == set(names) and newest <= known.get("dates", {}).get(task, "")):
            continue
        say(f"{task}: timing inference of {len(names)} models in turns")
        paths = {name: folder / cell_name(task, name, seed) for name in names}
        bench = Bench.set_up(Run.open(next(iter(paths.values()))).config, reuse=True)
        models = {name: load(path / "model").to(bench.device) for name, path in paths.items()}
        known[task] = {name: 1e3 * seconds for name, seconds in inference_seconds(bench, models).items()}
        known.setdefault("dates", {})[task] = newest
    write_atomically(file, json.dumps(known, indent=1).encode() + b"\n")
    return {task: known[task] for task in comparison.tasks if task in known}


def _reads(comparison: Comparison, task: str, row: str) -> list[Any]:
    settings = comparison.settings_of(task, row, comparison.seeds[0])
    return [settings.get(name) for name in ("model", "max_length", "precision")]


def _date(outcome: Outcome) -> str:
    assert outcome.metrics is not None
    return outcome.metrics["environment"]["date"]


def _write(
    comparison: Comparison,
    folder: Path,
    outcomes: Mapping[str, Outcome],
    verdicts: Verdicts,
    inference: Mapping[str, Mapping[str, float]],
) -> None:
    done = [outcome.metrics for outcome in outcomes.values() if outcome.metrics is not None]
    where: dict[str, Any] = done[0]["environment"] if done else {}
    tables = [*sheets(comparison, verdicts, inference), *filter(None, [overlap_sheet(comparison, folder)])]
    for table in tables:
        display.table(table)
    versions = ", ".join(f"{name} {version}" for name, version in where.get("versions", {}).items())
    machines = {(each["environment"]["device"], str(each["environment"]["versions"])) for each in done}
    if len(machines) > 1:
        say(f"note: the runs were made on {len(machines)} different machines or versions; do not compare their times")
    about = f"{where.get('date', '')[:10]}, {where.get('device', '')}, {where.get('precision', '')}; {versions}."
    model = comparison.settings.get("model", Finetune.model)
    head = f"# Comparison\n\n{about} Model {model}.\n\n![score against cost]({PLOT})\n\n"
    write_atomically(folder / TABLES, (head + "\n".join(table.markdown() for table in tables)).encode())
    result = {
        "comparison": comparison.to_dict(),
        "tuned": comparison.chosen,
        "environment": where,
        "verdicts": {
            row: {task: asdict(verdict) for task, verdict in by_task.items()} for row, by_task in verdicts.items()
        },
        "inference_ms_per_row": inference,
    }
    write_atomically(folder / RESULT, json.dumps(result, indent=1).encode() + b"\n")
    _plot(comparison, folder, verdicts)
    say(f"written: {folder / TABLES}, {RESULT}, {PLOT}")


def _plot(comparison: Comparison, folder: Path, verdicts: Verdicts) -> None:
    try:
        from ..report.frontier import Point, frontier
    except ImportError as error:
        say(f"no {PLOT}: {error.name} is not installed")
        return
    panels: dict[str, dict[str, Point]] = {}
    for task in comparison.tasks:
        found = {row: by_task[task] for row, by_task in verdicts.items()}
        panels[task] = {
            row: Point(verdict.flops, 100 * verdict.mean, 100 * verdict.error, comparison.is_dense(row))
            for row, verdict in found.items()
            if verdict.flops is not None and verdict.mean is not None
        }
    panels = {task: points for task, points in panels.items() if points}
    if not panels:
        return
    if len(panels) > 1:
        panels = {"mean of the tasks": _mean_panel(comparison, verdicts), **panels}
    title = f"{len(comparison.seeds)} seed{'s' if len(comparison.seeds) > 1 else ''}, standard errors"
    drawn = {name: points for name, points in panels.items() if points}
    write_atomically(folder / PLOT, frontier(drawn, reference=reference_row(comparison), title=title))


def _mean_panel(comparison: Comparison, verdicts: Verdicts) -> dict[str, Any]:
    from ..report.frontier import Point

    points: dict[str, Point] = {}
    for row, by_task in verdicts.items():
        cost = mean_over_tasks([verdict.flops for verdict in by_task.values()])
        score = mean_over_tasks([verdict.mean for verdict in by_task.values()])
        if cost is not None and score is not None:
            error = sum(verdict.error**2 for verdict in by_task.values()) ** 0.5 / len(by_task)
            points[row] = Point(cost, 100 * score, 100 * error, comparison.is_dense(row))
    return points
