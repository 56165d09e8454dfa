"""Predictions in the form that a task's own judge reads."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Data
from . import glue, squad
from .examples import Examples
from .predictions import Predictions
from .task import Task


def validation(task: Task, data: Data) -> dict[str, Examples]:
    """The validation rows of a task, by the names of the files their predictions are written to."""
    known = glue.TASKS.get(data.task or "")
    first = known.file if known else "predictions"
    return {first: task.validation, **{glue.FILES[name]: examples for name, examples in task.others.items()}}


def render(task: Task, data: Data, predictions: Predictions) -> tuple[str, str]:
    """Predictions as text, and the suffix of its file.

    Args:
        task: What was predicted.
        data: How the task was named.
        predictions: Of any of its rows.
    """
    rows: Sequence[str] = predictions.ids or [str(row) for row in range(len(predictions))]
    if predictions.answers is not None:
        return ".json", squad.submission(predictions.answers, rows)
    if data.task in glue.TASKS:
        written = glue.submission(data.task, predictions.values.tolist())
    elif task.problem == "regression":
        written = [repr(value) for value in predictions.values.tolist()]
    else:
        names = [" ".join(label.split()) for label in task.labels]  # a cell has no tabs and no line ends
        written = [names[number] for number in predictions.values.tolist()]
    lines = [f"{row}\t{prediction}" for row, prediction in zip(rows, written, strict=True)]
    return ".tsv", "\n".join(["index\tprediction", *lines]) + "\n"
