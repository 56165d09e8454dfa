"""What a study came to, in plain numbers: read from its run folders, nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...config.pretrain import Pretrain
from ...config.values import to_dict
from ...ticket import History
from ...train.steplog import read_steps
from ..grid import Cell, Outcome
from .study import SEARCH, Study

CHECKS = 40
"""Steps at which masks are compared."""


@dataclass(frozen=True)
class Pretrained:
    """What pre-training came to; means over the seeds that finished."""

    mlm_loss: float | None
    """On held-out documents, at the first phase's length. None for a row that ends with its search."""
    masked_accuracy: float | None
    search_steps: float
    train_steps: float
    seconds: float
    """Of search, drawing and training, data loading left out."""
    flops: float
    flops_of_dense: float | None
    """Of those of the dense row with the most steps; None without one."""
    seconds_of_dense: float | None
    parameters: float | None
    heads_kept: list[int] | None
    """By layer, first seed; None for a dense model."""
    neurons_kept: list[int] | None


@dataclass(frozen=True)
class StudyRow:
    """One row: a run of pre-training, fine-tuned by one method."""

    name: str
    run: str
    method: str | None
    """Of fine-tuning; None when nothing was fine-tuned."""
    pretrained: Pretrained | None
    """None when it failed, or the weights were there already."""
    scores: Mapping[str, float | None]
    """Headline metric by task, mean over seeds; None when a seed failed."""
    by_seed: Mapping[str, Mapping[int, float]]
    mean: float | None
    """Over tasks; None when one is missing."""
    change: float | None
    """Mean over tasks of score / score of the row `against`, minus 1 (App. C)."""
    against: str | None
    finetune_flops: Mapping[str, float | None]
    """By task, mean over seeds."""
    failures: tuple[str, ...] = ()
    curve: Sequence[Mapping[str, float]] = ()
    """First seed: `step` (search included), `seconds`, `mlm_loss`, `masked_accuracy`."""
    distances: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    """First seed, by heads and neurons; see `mask_distances`."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Of the runs, below the folder of all runs, by `pretrain` and task and seed."""


@dataclass(frozen=True)
class StudyResult:
    """All rows, and where they were made."""

    study: Study
    rows: tuple[StudyRow, ...]
    metrics: Mapping[str, str]
    """Name of the headline metric by task."""
    environment: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [asdict(row) for row in self.rows]
        return {
            "study": self.study.to_dict(),
            "environment": dict(self.environment),
            "metrics": dict(self.metrics),
            "rows": rows,
        }


def collect(study: Study, runs: Path, outcomes: Mapping[str, Outcome]) -> StudyResult:
    """Read what the runs say.

    Args:
        study: What was run.
        runs: Folder of all runs.
        outcomes: Of its cells, by name.
    """
    rows: list[StudyRow] = []
    for run in study.runs:
        methods = [None] if study.finetuning is None or study.method_of(run) == SEARCH else [*study.finetuning.methods]
        rows += [_row(study, runs, outcomes, run, method) for method in methods]
    first = {(row.run, row.method): row for row in rows}
    rows = [_changed(row, first.get((study.against(row.run), row.method))) for row in rows]
    done = [outcome.metrics for outcome in outcomes.values() if outcome.metrics is not None]
    named = {metrics["task"]: metrics["headline"] for metrics in done if "task" in metrics}
    return StudyResult(study, tuple(rows), named, done[0]["environment"] if done else {})


def _row(study: Study, runs: Path, outcomes: Mapping[str, Outcome], run: str, method: str | None) -> StudyRow:
    failures: list[str] = []
    by_seed: dict[str, dict[int, float]] = {}
    flops: dict[str, list[float]] = {}
    folders: dict[str, str] = {}
    for seed in study.seeds:
        before = study.pretraining(run, seed)
        if before is not None:
            folders[f"pretrain, seed {seed}"] = before.name
            if outcomes[before.name].failure is not None:
                failures.append(f"pre-training, seed {seed}: {outcomes[before.name].failure}")
        for (way, task), cell in study.finetunings(run, seed).items():
            if way != method:
                continue
            folders[f"{task}, seed {seed}"] = cell.name
            outcome = outcomes[cell.name]
            by_seed.setdefault(task, {})
            if outcome.metrics is None:
                failures.append(f"{task}, seed {seed}: {outcome.failure}")
            else:
                by_seed[task][seed] = outcome.metrics["score"][outcome.metrics["headline"]]
                flops.setdefault(task, []).append(outcome.metrics["flops"])
    scores = {task: _mean(found.values(), len(study.seeds)) for task, found in by_seed.items()}
    whole = [score for score in scores.values() if score is not None]
    several = study.finetuning is not None and len(study.finetuning.methods) > 1
    head = study.pretraining(run, study.seeds[0])
    done = head is not None and outcomes[head.name].metrics is not None
    return StudyRow(
        name=run if not several or method is None else method if len(study.runs) == 1 else f"{run}, {method}",
        run=run,
        method=method,
        pretrained=_pretrained(study, outcomes, run),
        scores=scores,
        by_seed=by_seed,
        mean=_mean(whole, len(scores)) if scores else None,
        change=None,
        against=None,
        finetune_flops={task: _mean(flops.get(task, []), len(study.seeds)) for task in scores},
        failures=tuple(failures),
        curve=_curve(runs / head.name, head, outcomes[head.name]) if head is not None and done else (),
        distances=mask_distances(runs / head.name, head) if head is not None and done else {},
        folders=folders,
    )


def _changed(row: StudyRow, other: StudyRow | None) -> StudyRow:
    """With the mean relative change to the row it is set beside; nothing for that row itself."""
    if other is None or other is row or not row.scores:
        return row
    pairs = [(row.scores[task], other.scores[task]) for task in row.scores]
    ratios = [mine / theirs - 1 for mine, theirs in pairs if mine is not None and theirs]
    change = statistics.fmean(ratios) if len(ratios) == len(pairs) else None
    return replace(row, change=change, against=other.name)


def _pretrained(study: Study, outcomes: Mapping[str, Outcome], run: str) -> Pretrained | None:
    mine = _metrics(study, outcomes, run)
    if not mine:
        return None
    dense = study.dense_row(run)
    theirs = _metrics(study, outcomes, dense) if dense is not None else {}
    both = [seed for seed in mine if seed in theirs]
    metrics = list(mine.values())
    scored = [each for each in metrics if "score" in each]
    ticket: Mapping[str, Any] = metrics[0].get("ticket") or {}

    def mean(name: str) -> float:
        return statistics.fmean(each[name] for each in metrics)

    def steps(stage: str) -> float:
        return statistics.fmean(each["stages"].get(stage, {}).get("steps", 0) for each in metrics)

    def ratio(name: str) -> float | None:
        return statistics.fmean(mine[seed][name] / theirs[seed][name] for seed in both) if both else None

    return Pretrained(
        mlm_loss=statistics.fmean(each["score"]["mlm_loss"] for each in scored) if scored else None,
        masked_accuracy=statistics.fmean(each["score"]["masked_accuracy"] for each in scored) if scored else None,
        search_steps=steps("search"),
        train_steps=steps("train"),
        seconds=mean("seconds"),
        flops=mean("flops"),
        flops_of_dense=ratio("flops"),
        seconds_of_dense=ratio("seconds"),
        parameters=statistics.fmean(each["parameters"]["after"] for each in scored) if scored else None,
        heads_kept=ticket.get("heads_kept"),
        neurons_kept=ticket.get("neurons_kept"),
    )


def _metrics(study: Study, outcomes: Mapping[str, Outcome], run: str) -> dict[int, dict[str, Any]]:
    """Of pre-training, by seed; those that finished."""
    cells = {seed: study.pretraining(run, seed) for seed in study.seeds}
    found = {seed: outcomes[cell.name].metrics for seed, cell in cells.items() if cell is not None}
    return {seed: metrics for seed, metrics in found.items() if metrics is not None}


def _curve(path: Path, cell: Cell, outcome: Outcome) -> tuple[dict[str, float], ...]:
    """Held-out loss on the way, and at the end."""
    metrics = outcome.metrics
    if metrics is None or cell.kind == SEARCH:
        return ()
    searched = metrics["stages"].get("search", {}).get("steps", 0)
    last = metrics["stages"]["train"]["steps"]
    lines = [line for line in read_steps(path / "evaluations.jsonl") if line["step"] < last]
    end = {"step": last, "seconds": metrics["elapsed"], **metrics["score"]}
    return tuple({**line, "step": line["step"] + searched} for line in (*lines, end))


def mask_distances(path: Path, cell: Cell) -> dict[str, dict[str, list[float]]]:
    """How the mask moves during the search (Sec. 3.3, Fig. 1).

    Args:
        path: The run folder.
        cell: Its settings.

    Returns:
        By `heads` and `neurons`: `steps`, evenly apart, optimizer steps done; `to_last`, the normalised distance of
        each of those masks to the last one; `to_next`, to the one that follows. Unaligned masks, all layers together.
        Nothing of what is not removed, and nothing without a search.
    """
    from ...report.maps import DistanceMap

    file = path / "history.bin"
    if not file.exists():
        return {}
    config = Pretrain(**cell.settings)
    found: dict[str, dict[str, list[float]]] = {}
    for kind in ("heads", "neurons"):
        if getattr(config, kind):
            of = DistanceMap.of(History(file), kind, to_dict(config), most=CHECKS)
            apart = of.overall
            found[kind] = {
                "steps": [float(step) for step in of.steps],
                "to_last": apart[:, -1].tolist(),
                "to_next": [float(apart[place, place + 1]) for place in range(len(apart) - 1)],
            }
    return found


def _mean(values: Any, wanted: int) -> float | None:
    """None when not all are there."""
    found = list(values)
    return statistics.fmean(found) if found and len(found) == wanted else None
