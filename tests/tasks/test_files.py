"""A person's own files: what is read, what is refused, and what is said about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import earlybert as eb
from earlybert.tasks import Predictions, Task, files


def load(
    folder: Path, rows: list[dict[str, Any]], validation: list[dict[str, Any]] | None = None, **columns: Any
) -> Task:
    names = []
    for name, part in (("train", rows), ("validation", validation)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in part or []))
        names.append(str(path) if part else None)
    columns = {"text": "text", "text_pair": None, "label": "label", "problem": "auto", "seed": 1, **columns}
    assert names[0] is not None
    return files.load(names[0], validation_file=names[1], **columns)


ROWS = [{"text": f"a film, number {n}", "label": "ab"[n % 2]} for n in range(20)]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": "a film", "label": float("nan")}, "row 21: column 'label' is empty"),
        ({"text": float("nan"), "label": "a"}, "row 21: column 'text' is empty"),
        ({"text": ["a", "film"], "label": "a"}, "row 21: column 'text' holds a list, not a text"),
        ({"text": {"body": "a film"}, "label": "a"}, "row 21: column 'text' holds an object, not a text"),
        ({"text": "a film \ud83d", "label": "a"}, r"line 21, holds half a character \(a \\ud"),
        ({"text": "a film", "label": "a\udc00"}, r"line 21, holds half a character \(a \\ud"),
    ],
)
def test_cells_that_are_no_text_are_refused(row: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(eb.Refused, match=sentence):
        load(tmp_path, [*ROWS, row])


def test_escapes_that_are_whole_characters_are_read(tmp_path: Path) -> None:
    task = load(tmp_path, [*ROWS, {"text": "a film \U0001f600", "label": "a"}])
    assert "\\ud83d\\ude00" in (tmp_path / "train.jsonl").read_text()
    assert "a film \U0001f600" in [*task.train.texts, *task.validation.texts]


def test_validation_rows_that_are_in_train_are_pointed_out(tmp_path: Path) -> None:
    held = [{"text": "a story", "label": "a"}, ROWS[3], {"text": ROWS[4]["text"], "label": "b"}]
    assert any("2 of 3 validation rows are in the training data" in note for note in load(tmp_path, ROWS, held).notes)
    assert not any("word for word" in note for note in load(tmp_path, ROWS, held[:1]).notes)
    assert not any("word for word" in note for note in load(tmp_path, ROWS).notes)
    assert any("2 of 2 validation rows" in note for note in load(tmp_path, ROWS[:2] * 10).notes)


def test_of_two_texts_both_have_to_be_known(tmp_path: Path) -> None:
    rows = [{**row, "other": f"it was {n}"} for n, row in enumerate(ROWS)]
    held = [{**rows[0], "other": "it was not"}, rows[1]]
    notes = load(tmp_path, rows, held, text_pair="other").notes
    assert any("1 of 2 validation rows" in note for note in notes)


def test_too_few_rows_to_hold_some_out(tmp_path: Path) -> None:
    with pytest.raises(eb.Refused, match=r"too few rows to hold some out \(2\); give --validation-file"):
        load(tmp_path, ROWS[:2])


def test_f1_of_two_classes_names_neither_the_positive_one(tmp_path: Path) -> None:
    """The label that sorts last may be that of nearly all rows: always saying it must not score well."""
    held = [{"text": f"text {n}", "label": "fraud" if n < 8 else "ok"} for n in range(100)]
    task = load(tmp_path, ROWS, [{**row, "label": "ab"[row["label"] == "ok"]} for row in held])
    always = Predictions(np.ones(100, dtype=int), np.array(task.validation.labels), task.metrics, 2)
    assert always.score()["macro_f1"] == pytest.approx((2 * 92 / 192 + 0) / 2)
    assert "f1" not in task.metrics


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"a film, number {n}", "label": labels[n % len(labels)]} for n in range(4 * len(labels))]


def test_labels_that_look_like_numbers_stay_as_written(tmp_path: Path) -> None:
    codes = ["007", "7", "12E4", "120000", "1_000", "-0", "+1", "12345678901234567890", "12345678901234567891"]
    assert set(load(tmp_path, labelled(*codes)).labels) == set(codes)


def test_a_number_is_one_class_however_its_fraction_is_written(tmp_path: Path) -> None:
    task = load(tmp_path, labelled(1, 1.0, "1", "1.0", " 1.00", -2.0, "-2", 10, "9"), labelled("1.0", 9.0))
    assert task.labels == ("-2", "1", "9", "10")
    assert task.validation.labels[:2] == [1, 2]


def test_exponents_with_fractions_are_values(tmp_path: Path) -> None:
    task = load(tmp_path, labelled("1.5e-3", "2", "3E1"))
    assert (task.problem, max(task.train.labels)) == ("regression", 30.0)
