"""Predictions in the form that a task's own judge reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..config.finetune import Data
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
        written = _named(predictions.values.tolist(), task.labels)
    return ".tsv", _table({"index": rows, "prediction": written})


def render_new(rows: Sequence[str], said: NDArray[np.float64], labels: Sequence[str] | None) -> str:
    """Predictions of new rows as text: the row, the class or value, and the probability of that class.

    Args:
        rows: Their names.
        said: Probabilities of the classes `[rows, classes]`, or values `[rows]`.
        labels: Names of the classes; None for values.
    """
    if labels is None:
        return _table({"index": rows, "prediction": [repr(value) for value in said.tolist()]})
    written = _named(said.argmax(-1).tolist(), labels)
    return _table(
        {"index": rows, "prediction": written, "probability": [f"{chance:.4f}" for chance in said.max(-1).tolist()]}
    )


def _named(numbers: Sequence[int], labels: Sequence[str]) -> list[str]:
    names = [" ".join(label.split()) for label in labels]  # a cell has no tabs and no line ends
    return [names[number] for number in numbers]


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    lines = ["\t".join(cells) for cells in zip(*columns.values(), strict=True)]
    return "\n".join(["\t".join(columns), *lines]) + "\n"
