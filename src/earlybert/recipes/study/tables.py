"""A study's tables: what pre-training cost and came to, and what its models are worth."""

from __future__ import annotations

from ...report.sheet import Sheet
from .result import StudyResult, StudyRow


def sheets(result: StudyResult) -> list[Sheet]:
    """What is printed and written, in this order."""
    found = [_pretraining(result)] if any(row.pretrained is not None or row.failures for row in result.rows) else []
    return [*found, *([_scores(result)] if result.study.finetuning is not None else [])]


def _pretraining(result: StudyResult) -> Sheet:
    lines: dict[str, list[str]] = {}
    for row in result.rows:
        if "model" in result.study.runs[row.run]:
            continue
        lines.setdefault(row.run, [row.run, *_pretrained(row)])
    columns = ("run", "steps", "loss", "found", "FLOPs", "time", "TFLOP", "size")
    notes = [
        "Steps: search + training. FLOPs and time are those of search and training, of the longest dense run of the "
        "same model. Loss, and share of masked tokens found: held-out documents, at the first phase's length."
    ]
    return Sheet("Pre-training", columns, list(lines.values()), notes)


def _pretrained(row: StudyRow) -> list[str]:
    found = row.pretrained
    if found is None:
        return ["failed", *["-"] * 6]
    steps = f"{found.train_steps:,.0f}"
    steps = f"{found.search_steps:,.0f} + {steps}" if found.search_steps else steps
    return [
        steps,
        "-" if found.mlm_loss is None else f"{found.mlm_loss:.3f}",
        "-" if found.masked_accuracy is None else f"{found.masked_accuracy:.2%}",
        "-" if found.flops_of_dense is None else f"{found.flops_of_dense:.3f}",
        "-" if found.seconds_of_dense is None else f"{found.seconds_of_dense:.3f}",
        f"{found.flops / 1e12:,.4g}",
        "-" if found.parameters is None else f"{found.parameters / 1e6:,.1f} M",
    ]


def _scores(result: StudyResult) -> Sheet:
    given = result.study.finetuning
    assert given is not None
    tasks = tuple(given.tasks)
    rows = [
        [
            row.name,
            *("failed" if (score := row.scores.get(task)) is None else f"{100 * score:.2f}" for task in tasks),
            "-" if row.mean is None else f"{100 * row.mean:.2f}",
            "-" if row.change is None else f"{100 * row.change:+.2f} %",
        ]
        for row in result.rows
        if row.method is not None
    ]
    failures = [f"failed: {row.name}, {why}" for row in result.rows for why in row.failures]
    named = ", ".join(f"{task} {metric}" for task, metric in result.metrics.items())
    count = len(result.study.seeds)
    beside: dict[str, list[str]] = {}
    for row in result.rows:
        if row.change is not None and row.against is not None:
            beside.setdefault(row.against, []).append(row.name)
    changes = [f"to {other}: {', '.join(names)}" for other, names in beside.items()]
    notes = [*failures, f"Points: {named}."]
    if changes:
        notes.append(f"Change: mean over tasks of the score's relative difference, {'; '.join(changes)}.")
    if count == 1:
        notes.append("One seed: a point or two is noise.")
    title = f"Fine-tuned, mean over {count} seed{'s' if count > 1 else ''}"
    return Sheet(title, ("row", *tasks, "mean", "change"), rows, notes)
