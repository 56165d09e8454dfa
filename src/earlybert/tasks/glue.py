"""The GLUE tasks (Wang et al. 2018), from the hub by name or from local files."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..anatomy import Refused
from ..ticket.store import quiet
from .task import Examples, Task


@dataclass(frozen=True)
class Glue:
    """One task's columns, labels and metrics; the first metric is the one the paper reports (Sec. 4.1)."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    validation: str = "validation"
    """Name of the validation split on the hub."""


ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "cola": Glue(("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": Glue(("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": Glue(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "stsb": Glue(("sentence1", "sentence2"), ("similarity",), ("pearson", "spearman")),
    "qqp": Glue(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": Glue(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        validation="validation_matched",
    ),
    "qnli": Glue(("question", "sentence"), ENTAILMENT, ("accuracy",)),
    "rte": Glue(("sentence1", "sentence2"), ENTAILMENT, ("accuracy",)),
    "wnli": Glue(("sentence1", "sentence2"), ("not_entailment", "entailment"), ("accuracy",)),
}


def load(name: str, data_dir: str | None) -> Task:
    """A GLUE task.

    Args:
        name: A key of `TASKS`.
        data_dir: A folder with `<name>/train.jsonl.gz` and `<name>/validation.jsonl.gz`, one JSON
            object a line with the hub's column names; None loads from the hub.

    Raises:
        Refused: The files are missing or broken, or the hub cannot be reached.
    """
    glue = TASKS[name]
    if data_dir is not None:
        folder = Path(data_dir) / name
        splits = [_examples(read_jsonl(folder / f"{split}.jsonl.gz"), glue, name) for split in ("train", "validation")]
    else:
        splits = [_examples(_from_hub(name, split), glue, name) for split in ("train", glue.validation)]
    problem = "regression" if len(glue.labels) == 1 else "classification"
    return Task(name, problem, glue.labels, splits[0], splits[1], glue.metrics)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, packed with gzip or not.

    Raises:
        Refused: It is missing or broken; the sentence says where.
    """
    rows: list[dict[str, Any]] = []
    number = 0
    try:
        opened = (
            gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else open(path, encoding="utf-8-sig")
        )
        with opened as file:
            for line in file:
                number += 1
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError
                    rows.append(row)
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error):
        raise Refused(f"data file {path} is broken after line {number} (damaged or not UTF-8 text).") from None
    except OSError as error:
        raise Refused(f"data file {path} cannot be read ({error.strerror or error}).") from None
    except (ValueError, RecursionError):
        raise Refused(f"data file {path}, line {number}, is not a JSON object.") from None
    return rows


def _examples(rows: Iterable[Mapping[str, Any]], glue: Glue, name: str) -> Examples:
    rows, regression = list(rows), len(glue.labels) == 1
    for number, row in enumerate(rows, start=1):
        for column in (*glue.columns, "label"):
            if row.get(column) is None:
                raise Refused(f"{name}: row {number} has no {column!r}.")
        if regression and not isinstance(row["label"], (int, float)):
            raise Refused(f"{name}: row {number} has label {row['label']!r}, which is not a number.")
    return Examples(
        [str(row[glue.columns[0]]) for row in rows],
        [str(row[glue.columns[1]]) for row in rows] if len(glue.columns) == 2 else None,
        [float(row["label"]) if regression else row["label"] for row in rows],
    )


def _from_hub(name: str, split: str) -> Any:
    import datasets

    try:
        with quiet():
            return datasets.load_dataset("nyu-mll/glue", name, split=split)
    except Exception as error:  # the hub client raises many kinds; all mean that the data is not to be had
        raise Refused(
            f"GLUE task {name} could not be loaded from the hub ({str(error).splitlines()[0][:200]}); "
            "with local files, give --data-dir."
        ) from error
