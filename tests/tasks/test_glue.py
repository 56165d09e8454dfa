"""GLUE: columns, labels, metrics and submissions of all nine tasks, and what is said when something is missing."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from earlybert.anatomy import Refused
from earlybert.config.finetune import Data
from earlybert.data import hub
from earlybert.tasks import glue, load, load_test
from earlybert.tasks.submission import render, validation
from tests.conftest import write_jsonl

OFFICIAL = {
    # task: columns; classes 0, 1, ... as the hub's data card names them, or what a value is; metrics of the GLUE paper
    # (Table 1); file on the site
    "cola": ("sentence", "unacceptable acceptable", {"matthews"}, "CoLA"),
    "sst2": ("sentence", "negative positive", {"accuracy"}, "SST-2"),
    "mrpc": ("sentence1 sentence2", "not_equivalent equivalent", {"accuracy", "f1"}, "MRPC"),
    "stsb": ("sentence1 sentence2", "similarity", {"pearson", "spearman"}, "STS-B"),
    "qqp": ("question1 question2", "not_duplicate duplicate", {"accuracy", "f1"}, "QQP"),
    "mnli": ("premise hypothesis", "entailment neutral contradiction", {"accuracy"}, "MNLI-m"),
    "qnli": ("question sentence", "entailment not_entailment", {"accuracy"}, "QNLI"),
    "rte": ("sentence1 sentence2", "entailment not_entailment", {"accuracy"}, "RTE"),
    "wnli": ("sentence1 sentence2", "not_entailment entailment", {"accuracy"}, "WNLI"),
}


def rows_of(name: str, count: int, *, label: bool = True) -> list[dict[str, Any]]:
    columns, classes = OFFICIAL[name][0], len(OFFICIAL[name][1].split())
    texts = {column: f"a film {column}" for column in columns.split()}
    labels = [row % classes if classes > 1 else row % 6 / 2 for row in range(count)]
    return [{**texts, **({"label": labels[row]} if label else {}), "idx": row + 100} for row in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in OFFICIAL:
        for split, count in (("train", 12), ("validation", 9)):
            write_jsonl(tmp_path / name / f"{split}.jsonl.gz", rows_of(name, count))
        write_jsonl(tmp_path / name / "test.jsonl.gz", rows_of(name, 4, label=False))
    return tmp_path


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_task_loads_scores_and_is_handed_in(name: str, folder: Path) -> None:
    columns, names, metrics, file = OFFICIAL[name]
    classes = len(names.split())
    data = Data(task=name, data_dir=str(folder))
    task = load(data)
    assert set(task.metrics) == metrics
    assert task.labels == tuple(names.split())
    assert (task.train.pairs is None) == (len(columns.split()) == 1)
    assert task.train.texts[0] == f"a film {columns.split()[0]}"
    rows: Any = SimpleNamespace()
    right = np.asarray(task.validation.labels, dtype=float if classes == 1 else np.int64)
    assert task.predictions(task.validation, rows, right).score() == {metric: pytest.approx(1) for metric in metrics}
    tests = load_test(data)
    assert list(tests) == [file]
    said = np.array([-0.5, 5.25, 2.71828, 0.0]) if classes == 1 else np.array([1, 0, 1, classes - 1])
    suffix, text = render(task, data, task.predictions(tests[file], rows, said))
    assert suffix == ".tsv"
    expected = {
        "stsb": ["0.000", "5.000", "2.718", "0.000"],
        "mnli": ["neutral", "entailment", "neutral", "contradiction"],
        "qnli": ["not_entailment", "entailment", "not_entailment", "not_entailment"],
        "rte": ["not_entailment", "entailment", "not_entailment", "not_entailment"],
    }.get(name, ["1", "0", "1", "1"])
    lines = [line.split("\t") for line in text.splitlines()]
    assert lines == [["index", "prediction"], *([str(100 + row), line] for row, line in enumerate(expected))]


def test_mnli_is_scored_on_both_sets_and_handed_in_three_times(folder: Path) -> None:
    write_jsonl(folder / "mnli" / "validation_mismatched.jsonl.gz", rows_of("mnli", 30))
    write_jsonl(folder / "mnli" / "test_mismatched.jsonl.gz", rows_of("mnli", 5, label=False))
    write_jsonl(folder / "ax" / "test.jsonl.gz", rows_of("mnli", 6, label=False))
    data = Data(task="mnli", data_dir=str(folder), validation_rows=6)
    task = load(data)
    assert {name: len(examples) for name, examples in task.others.items()} == {"mismatched": 6}
    assert {name: len(examples) for name, examples in validation(task, data).items()} == {"MNLI-m": 6, "MNLI-mm": 6}
    assert {name: len(rows) for name, rows in load_test(data).items()} == {"MNLI-m": 4, "MNLI-mm": 5, "AX": 6}
    assert "mismatched" not in load(Data(task="rte", data_dir=str(folder))).others


def test_the_names_the_hub_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def split(repository: str, name: str | None, part: str, *, offline: bool) -> list[dict[str, Any]]:
        asked.append((repository, name, part, offline))
        return rows_of("mnli", 6)

    monkeypatch.setattr(hub, "split", split)
    task = load(Data(task="mnli", offline=True))
    assert list(task.others) == ["mismatched"]
    assert list(load_test(Data(task="mnli"))) == ["MNLI-m", "MNLI-mm", "AX"]
    assert asked == [
        ("nyu-mll/glue", "mnli", "train", True),
        ("nyu-mll/glue", "mnli", "validation_matched", True),
        ("nyu-mll/glue", "mnli", "validation_mismatched", True),
        ("nyu-mll/glue", "mnli", "test_matched", False),
        ("nyu-mll/glue", "mnli", "test_mismatched", False),
        ("nyu-mll/glue", "ax", "test", False),
    ]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sentence": "x", "hypothesis": None}, "row 3 has nothing in its column 'hypothesis'"),
        ({"label": 3}, "row 3 of the train data has label 3; labels are 0 to 2"),
        ({"label": -1}, "row 3 of the train data has label -1"),
        ({"label": "neutral"}, "row 3 of the train data has label 'neutral'"),
    ],
)
def test_rows_that_do_not_fit_are_refused(change: dict[str, Any], sentence: str, folder: Path) -> None:
    rows = rows_of("mnli", 9)
    rows[2] |= change
    write_jsonl(folder / "mnli" / "train.jsonl.gz", rows)
    with pytest.raises(Refused, match=re.escape(sentence)):
        load(Data(task="mnli", data_dir=str(folder)))


def test_a_missing_column_names_those_there_are(folder: Path) -> None:
    write_jsonl(folder / "rte" / "train.jsonl.gz", rows_of("qnli", 9))
    with pytest.raises(
        Refused, match="row 1 has no column 'sentence1'; its columns are 'question', 'sentence', 'label', 'idx'"
    ):
        load(Data(task="rte", data_dir=str(folder)))


def test_one_class_is_refused(folder: Path) -> None:
    write_jsonl(folder / "rte" / "train.jsonl.gz", [{**row, "label": 1} for row in rows_of("rte", 9)])
    with pytest.raises(Refused, match="all training rows have the same label"):
        load(Data(task="rte", data_dir=str(folder)))


def test_a_value_that_is_no_number_is_refused(folder: Path) -> None:
    write_jsonl(folder / "stsb" / "validation.jsonl.gz", [*rows_of("stsb", 3), {**rows_of("stsb", 1)[0], "label": "2"}])
    with pytest.raises(Refused, match="row 4 has label '2', which is not a number"):
        load(Data(task="stsb", data_dir=str(folder)))


def test_the_nearest_names_are_offered() -> None:
    for wrong, meant in (("sst-2", "sst2"), ("SQuAD", "squad"), ("mnl", "mnli"), ("stsB", "stsb")):
        with pytest.raises(Refused, match=f"unknown task '{wrong}'; did you mean .*{meant}"):
            load(Data(task=wrong))
    with pytest.raises(Refused, match="unknown task 'xyzzy'; there are cola, sst2"):
        load(Data(task="xyzzy"))


def test_no_test_rows_where_there_are_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="bbc has no test rows; use --split validation"):
        load_test(Data(task="bbc"))
    with pytest.raises(Refused, match="test questions of squad are not public"):
        load_test(Data(task="squad"))
    write_jsonl(folder / "rte" / "test.jsonl.gz", [])
    with pytest.raises(Refused, match="test rows for RTE are empty"):
        load_test(Data(task="rte", data_dir=str(folder)))


def test_the_table_of_the_docs_is_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    cells = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")
    ]
    table = {row[0]: row for row in cells}
    for name, task in glue.TASKS.items():
        assert [word.strip(" *") for word in table[name][2].split(",")] == list(task.metrics)
        assert table[name][4].split(",")[0].strip("` ") == f"{task.file}.tsv"
