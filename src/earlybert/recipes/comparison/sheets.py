"""The tables of a comparison: scores, costs, and what is better than what."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from ...report.sheet import Sheet
from ..statistics import LEVEL, Difference, over_tasks
from .comparison import Comparison
from .verdict import NEAR, Verdict, Verdicts, mean_over_tasks, reference_row

OTHER_COST = "(other cost)"

Inference = Mapping[str, Mapping[str, float]]
"""Milliseconds a row, by task and method."""


def sheets(comparison: Comparison, verdicts: Verdicts, inference: Inference) -> list[Sheet]:
    """What a comparison prints and writes, in this order."""
    full = _to_full(comparison, verdicts)
    shown = [_scores(comparison, verdicts), _costs(comparison, verdicts, inference), _differences(comparison, verdicts)]
    return [*shown, *([full] if full.rows else [])]


def _scores(comparison: Comparison, verdicts: Verdicts) -> Sheet:
    tasks = tuple(comparison.tasks)
    rows: list[list[str]] = []
    for row, by_task in verdicts.items():
        mean = mean_over_tasks([by_task[task].mean for task in tasks])
        rows.append([row, *(_score(by_task[task]) for task in tasks), "-" if mean is None else f"{100 * mean:.2f}"])
    failures = [
        f"failed: {task}, {row}, seed {seed}: {why}"
        for row, by_task in verdicts.items()
        for task, verdict in by_task.items()
        for seed, why in verdict.failures.items()
    ]
    seeds = len(comparison.seeds)
    collapsed = [
        f"one answer for every row: {task}, {row}, seeds {', '.join(map(str, verdict.collapsed))}"
        for row, by_task in verdicts.items()
        for task, verdict in by_task.items()
        if verdict.collapsed
    ]
    notes = [*failures, *collapsed, *_trials(comparison)]
    title = f"Score in points, mean over {seeds} seed{'s' if seeds > 1 else ''}"
    return Sheet(title + (" ± standard deviation" if seeds > 1 else ""), ("method", *tasks, "mean"), rows, notes)


def _trials(comparison: Comparison) -> list[str]:
    """How much each row was tuned: a rival that was tuned less is no rival."""
    trials = {row: len(comparison.trials(row)) for row in comparison.methods}
    if not any(trials.values()):
        return []
    return [
        "Tuned on a part of train, trials a task: " + ", ".join(f"{row} {count}" for row, count in trials.items()) + "."
    ]


def _score(verdict: Verdict) -> str:
    if verdict.mean is None:
        return "failed"
    text = f"{100 * verdict.mean:.2f}"
    if len(verdict.scores) > 1:
        text += f" ± {100 * statistics.stdev(verdict.scores.values()):.2f}"
    return text + (f" ({len(verdict.failures)} failed)" if verdict.failures else "")


def _costs(comparison: Comparison, verdicts: Verdicts, inference: Inference) -> Sheet:
    rows: list[list[str]] = []
    for row, by_task in verdicts.items():
        found = list(by_task.values())

        def mean(read: Callable[[Verdict], float | None], found: Sequence[Verdict] = found) -> float | None:
            return mean_over_tasks([read(verdict) for verdict in found])

        parts = [
            mean(lambda verdict, part=part: None if verdict.split is None else verdict.split[part])
            for part in ("fewer_epochs", "smaller_network", "engine", "search")
        ]
        rows.append(
            [
                row,
                _share(mean(lambda verdict: verdict.flops)),
                _share(mean(lambda verdict: verdict.seconds)),
                *("-" if part is None else f"{100 * part:+.1f} %" for part in parts),
                _share(mean(lambda verdict: verdict.parameters)),
                _share(mean(lambda verdict: verdict.forward)),
                _share(_inference(comparison, inference, row)),
            ]
        )
    notes = [
        "Training FLOPs and time count search, scoring, drawing and cutting. Saved time = fewer epochs + smaller "
        "network + engine + search (a cost where negative), of the reference run's time. Size is parameters, inference "
        "FLOPs those of a forward pass, inference the time of a row. Mean over tasks.",
    ]
    if not comparison.times:
        notes.append("Times were left out (times: false).")
    elif comparison.jobs != 1:
        notes.append("Runs shared the machine: their times are rough; with jobs: 1 they are not.")
    title = f"Cost, of {reference_row(comparison)}"
    parts = ("epochs", "network", "engine", "search")
    return Sheet(title, ("method", "FLOPs", "time", *parts, "size", "inference FLOPs", "inference"), rows, notes)


def _inference(comparison: Comparison, inference: Inference, row: str) -> float | None:
    reference = reference_row(comparison)
    times = [inference.get(task, {}) for task in comparison.tasks]
    return mean_over_tasks([each[row] / each[reference] if {row, reference} <= set(each) else None for each in times])


def _differences(comparison: Comparison, verdicts: Verdicts) -> Sheet:
    tasks = tuple(comparison.tasks)
    rows = [
        [row, _rival(by_task), *(_difference(by_task[task]) for task in tasks), *_mean_difference(comparison, by_task)]
        for row, by_task in verdicts.items()
        if any(verdict.difference is not None for verdict in by_task.values())
    ]
    detectable = {
        task: max(
            (
                found.detectable
                for by_task in verdicts.values()
                if (found := by_task[task].difference) is not None and found.detectable is not None
            ),
            default=None,
        )
        for task in tasks
    }
    seeds = len(comparison.seeds)
    notes = [
        "Points, with 95 % interval over seeds and examples. After Holm over the tasks: better, worse: two-sided "
        f"p < {LEVEL}; not inferior: worse by less than {comparison.margin:g} points, one-sided p < {LEVEL}; open: "
        "none of these is shown. (other cost): no dense run is within 5 % of this method's FLOPs.",
        "The smallest difference that every row would have shown (four times in five, before Holm): "
        + ", ".join(f"{task} {100 * value:.2f}" for task, value in detectable.items() if value is not None)
        + " points.",
    ]
    if lacking := _without_rival(comparison, verdicts):
        notes.append(
            f"No dense run was stopped at the cost of {', '.join(lacking)}; a row of methods that would be: "
            f"{{method: dense_same_flops, like: {lacking[0]}}}."
        )
    if len(tasks) > 1:
        notes.append("The mean over the tasks is one test more, and not corrected.")
    if seeds == 1:
        notes.append("One seed: the intervals speak of the examples alone, not of training again.")
    columns = ("method", "against", *tasks, *_mean_column(comparison))
    return Sheet("Difference to the dense model at the same cost", columns, rows, notes)


def _without_rival(comparison: Comparison, verdicts: Verdicts) -> list[str]:
    """Rows that are judged against a dense run of another cost, and could have one of theirs."""
    return [
        row
        for row, by_task in verdicts.items()
        if comparison.may_have_rival(row)
        and any(verdict.difference is not None and not _same_cost(verdict) for verdict in by_task.values())
    ]


def _mean_column(comparison: Comparison) -> list[str]:
    return ["mean"] if len(comparison.tasks) > 1 else []


def _mean_difference(comparison: Comparison, by_task: Mapping[str, Verdict]) -> list[str]:
    """To the dense models at the same cost, over all tasks; nothing where there is one task."""
    found = [verdict.difference for verdict in by_task.values() if verdict.difference is not None]
    if len(by_task) == 1:
        return []
    if len(found) < len(by_task):
        return ["-"]
    mean = over_tasks(found, margin=comparison.margin / 100)
    near = all(_same_cost(verdict) for verdict in by_task.values())
    return [f"{_interval(mean)} {_words(mean, mean.inferior, mean.different) if near else OTHER_COST}"]


def _to_full(comparison: Comparison, verdicts: Verdicts) -> Sheet:
    """What is given up against the dense run that costs more."""
    rows: list[list[str]] = []
    for row, by_task in verdicts.items():
        found = [verdict.to_full for verdict in by_task.values()]
        known = [each for each in found if each is not None]
        if known:
            mean = [_interval(over_tasks(known, margin=0.0))] if len(known) == len(found) else ["-"]
            cells = ["-" if each is None else _interval(each) for each in found]
            rows.append([row, *cells, *(mean if len(found) > 1 else [])])
    title = f"Difference to {reference_row(comparison)}, whose training costs 1"
    columns = ("method", *comparison.tasks, *_mean_column(comparison))
    return Sheet(title, columns, rows, ["Points, with 95 % interval over seeds and examples."])


def _rival(by_task: Mapping[str, Verdict]) -> str:
    found = [verdict for verdict in by_task.values() if verdict.rival is not None]
    names = list(dict.fromkeys(str(verdict.rival) for verdict in found))
    costs = [verdict.rival_cost for verdict in found if verdict.rival_cost is not None]
    if costs and not all(1 / NEAR <= cost <= NEAR for cost in costs):
        return f"{', '.join(names)} ({min(costs):.2f}-{max(costs):.2f} x its FLOPs)"
    return ", ".join(names)


def _difference(verdict: Verdict) -> str:
    found = verdict.difference
    return "-" if found is None else f"{_interval(found)} {_judgement(verdict)}"


def _interval(found: Difference) -> str:
    return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def _same_cost(verdict: Verdict) -> bool:
    return verdict.rival_cost is not None and 1 / NEAR <= verdict.rival_cost <= NEAR


def _judgement(verdict: Verdict) -> str:
    """A difference in a word or two, after Holm's correction; nothing where the costs differ."""
    assert verdict.difference is not None
    if not _same_cost(verdict):
        return OTHER_COST
    return _words(verdict.difference, verdict.inferior, verdict.different)


def _words(found: Difference, inferior: float | None, different: float | None) -> str:
    said: list[str] = []
    if different is not None and different < LEVEL:
        said.append("better" if found.mean > 0 else "worse")
    if inferior is not None and inferior < LEVEL and "better" not in said:
        said.append("not inferior")
    return ", ".join(said) or "open"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
