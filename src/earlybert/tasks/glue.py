"""The GLUE tasks (Wang et al. 2018), from the hub by name or from local files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..anatomy import Refused
from ..config.finetune import Data
from ..data import hub
from .examples import Examples
from .source import read_jsonl, require
from .task import Task

REPOSITORY = "nyu-mll/glue"


@dataclass(frozen=True)
class Glue:
    """One task's columns, labels and metrics."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    """GLUE's official ones; the first is the one the paper reports (Sec. 4.1)."""
    file: str
    """Name of its test predictions in a submission, without `.tsv`."""
    named: bool = False
    """Whether a submission names the classes; else it numbers them."""
    validation: str = "validation"
    """Name of the validation split on the hub."""
    tests: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    """By file of a submission: task and split on the hub, local file. Where a task has more than one test split."""


ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "cola": Glue(("sentence",), ("unacceptable", "acceptable"), ("matthews",), "CoLA"),
    "sst2": Glue(("sentence",), ("negative", "positive"), ("accuracy",), "SST-2"),
    "mrpc": Glue(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1"), "MRPC"),
    "stsb": Glue(("sentence1", "sentence2"), ("similarity",), ("pearson", "spearman"), "STS-B"),
    "qqp": Glue(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), "QQP"),
    "mnli": Glue(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        "MNLI-m",
        named=True,
        validation="validation_matched",
        tests={
            "MNLI-m": ("mnli", "test_matched", "mnli/test.jsonl.gz"),
            "MNLI-mm": ("mnli", "test_mismatched", "mnli/test_mismatched.jsonl.gz"),
            "AX": ("ax", "test", "ax/test.jsonl.gz"),
        },
    ),
    "qnli": Glue(("question", "sentence"), ENTAILMENT, ("accuracy",), "QNLI", named=True),
    "rte": Glue(("sentence1", "sentence2"), ENTAILMENT, ("accuracy",), "RTE", named=True),
    "wnli": Glue(("sentence1", "sentence2"), ("not_entailment", "entailment"), ("accuracy",), "WNLI"),
}
MISMATCHED = "mismatched"
"""Name of MNLI's second validation split, from genres that training has not seen. The paper reports the first."""
FILES = {MISMATCHED: "MNLI-mm"}
"""Files of a submission for further validation splits."""


def load(name: str, data: Data) -> Task:
    """A GLUE task.

    Args:
        name: A key of `TASKS`.
        data: Of which `data_dir` is a folder with `<name>/train.jsonl.gz` and `<name>/validation.jsonl.gz`
            (and, for mnli, `validation_mismatched.jsonl.gz` if it is there), one JSON object a line with the
            hub's column names; None loads from the hub.

    Raises:
        Refused: The files are missing or broken, or the hub cannot be reached.
    """
    glue = TASKS[name]
    splits: dict[str, Examples] = {}
    for split, remote in {"train": "train", "validation": glue.validation}.items():
        splits[split] = _split(name, name, remote, f"{name}/{split}.jsonl.gz", data)
    others: dict[str, Examples] = {}
    if name == "mnli":
        file = f"{name}/validation_{MISMATCHED}.jsonl.gz"
        if data.data_dir is None or (Path(data.data_dir) / file).exists():
            others[MISMATCHED] = _split(name, name, f"validation_{MISMATCHED}", file, data)
    problem = "regression" if len(glue.labels) == 1 else "classification"
    return Task(name, problem, glue.labels, splits["train"], splits["validation"], glue.metrics, others=others)


def load_test(name: str, data: Data) -> dict[str, Examples]:
    """The test rows of a task, without labels, by the names of their files in a submission.

    Of local files, those of `mnli/test_mismatched.jsonl.gz` and `ax/test.jsonl.gz` that are absent are left out.

    Raises:
        Refused: As `load`.
    """
    glue = TASKS[name]
    tests = glue.tests or {glue.file: (name, "test", f"{name}/test.jsonl.gz")}
    found: dict[str, Examples] = {}
    for place, (file, (task, remote, local)) in enumerate(tests.items()):
        if place == 0 or data.data_dir is None or (Path(data.data_dir) / local).exists():
            found[file] = _split(name, task, remote, local, data, labelled=False)
    return found


def submission(name: str, values: Sequence[int] | Sequence[float]) -> list[str]:
    """Predictions as GLUE's site takes them: class numbers, names of classes, or similarities clipped to 0 to 5.

    Args:
        name: A key of `TASKS`.
        values: Class numbers, or similarities.
    """
    glue = TASKS[name]
    if len(glue.labels) == 1:
        return [f"{min(max(float(value), 0.0), 5.0):.3f}" for value in values]
    return [glue.labels[int(value)] if glue.named else str(int(value)) for value in values]


def _split(name: str, task: str, remote: str, local: str, data: Data, *, labelled: bool = True) -> Examples:
    if data.data_dir is not None:
        path = Path(data.data_dir) / local
        return _examples(read_jsonl(path), TASKS[name], f"data file {path}", labelled)
    rows = hub.split(REPOSITORY, task, remote, offline=data.offline)
    return _examples(rows, TASKS[name], f"{task} ({remote})", labelled)


def _examples(rows: Sequence[Mapping[str, Any]], glue: Glue, where: str, labelled: bool) -> Examples:
    require(rows, (*glue.columns, "label") if labelled else glue.columns, where)
    regression = len(glue.labels) == 1
    labels: list[Any] = [row["label"] for row in rows] if labelled else [0.0 if regression else 0] * len(rows)
    for number, label in enumerate(labels, start=1):
        if regression and (isinstance(label, bool) or not isinstance(label, (int, float))):
            raise Refused(f"{where}: row {number} has label {label!r}, which is not a number.")
    return Examples(
        [str(row[glue.columns[0]]) for row in rows],
        [str(row[glue.columns[1]]) for row in rows] if len(glue.columns) == 2 else None,
        [float(label) for label in labels] if regression else labels,
        [str(row["idx"]) for row in rows] if all("idx" in row for row in rows) else None,
    )
