"""A person's own files: what is read, what is refused, and what is said about them."""

from __future__ import annotations

import gzip
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


def read(folder: Path, name: str, content: str, **columns: Any) -> Task:
    (folder / name).write_text(content)
    columns = {"text": "text", "text_pair": None, "label": "label", "problem": "auto", "seed": 1, **columns}
    return files.load(str(folder / name), validation_file=None, **columns)


def table(header: str, row: str, count: int = 20) -> str:
    return "\n".join([header, *(row.format(n=n, label="ab"[n % 2]) for n in range(count))]) + "\n"


def test_a_tsv_is_not_told_to_quote(tmp_path: Path) -> None:
    with pytest.raises(eb.Refused, match=r"row 1 has more cells than the header; \.tsv files are read without quoting"):
        read(tmp_path, "mine.tsv", table("text\tlabel", '"a film\tof {n}"\t{label}'))
    with pytest.raises(eb.Refused, match="row 1 has more cells than the header; quote texts that hold ','"):
        read(tmp_path, "mine.csv", table("text,label", "a film, of {n},{label}"))


def test_quoted_texts_of_a_tsv_are_pointed_out(tmp_path: Path) -> None:
    task = read(tmp_path, "mine.tsv", table("text\tlabel", '"a ""film"" of {n}"\t{label}'))
    assert task.train.texts[0].startswith('"a ""film""')
    assert sum("18 of 18 texts in" in note and "begin and end with a double quote" in note for note in task.notes) == 1
    assert not any(
        "quote" in note for note in read(tmp_path, "no.tsv", table("text\tlabel", '"{n}" it was\t{label}')).notes
    )
    assert not any("quote" in note for note in read(tmp_path, "a.csv", table("text,label", '"""{n}""",{label}')).notes)


def test_a_first_row_without_the_label_is_an_empty_cell(tmp_path: Path) -> None:
    with pytest.raises(eb.Refused, match="row 1: column 'label' is empty"):
        load(tmp_path, [{"text": "a film"}, *ROWS])
    with pytest.raises(eb.Refused, match=r"no column 'label'; its columns are 'text'\."):
        load(tmp_path, [{"text": "a film"}, {"text": "a story"}])


def test_columns_without_a_name_are_left_out_where_nothing_is_lost(tmp_path: Path) -> None:
    for header, row in (
        ("text,label,,", "film {n},{label},,"),
        ("text,label, ,", "film {n},{label}"),
        (",text,label", "{n},film {n},{label}"),
    ):
        task = read(tmp_path, "mine.csv", table(header, row))
        assert task.labels == ("a", "b")
        assert {text[:5] for text in task.train.texts} == {"film "}
    with pytest.raises(eb.Refused, match="row 1: a column without a name holds 'a'; name it in the header"):
        read(tmp_path, "mine.csv", table("text,label,", "a film, of {n},{label}"))


def test_columns_are_listed_so_that_blanks_show(tmp_path: Path) -> None:
    with pytest.raises(eb.Refused, match="no column 'text'; its columns are ' text', 'label '"):
        read(tmp_path, "mine.csv", table(" text,label ", "film {n},{label}"))


@pytest.mark.parametrize(
    ("name", "separator", "said"),
    [
        ("a.csv", ";", "by ';', and a .csv is by ','"),
        ("a.csv", "\t", r"by '\t', and a .csv"),
        ("a.tsv", ",", "by ',', and a .tsv"),
    ],
)
def test_another_separator_is_hinted_at(name: str, separator: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(eb.Refused, match="no column 'text'") as refused:
        read(tmp_path, name, table(f"text{separator}label", f"film {{n}}{separator}{{label}}"))
    assert f"; it looks separated {said}" in str(refused.value)
    inner = {";": ",", "\t": ",", ",": "\t"}[separator]
    with pytest.raises(eb.Refused, match="row 1 has more cells than the header; it looks separated"):
        read(tmp_path, name, table(f"text{separator}label", f"film{inner} {{n}}{separator}{{label}}"))


@pytest.mark.parametrize("name", ["MINE.CSV", "mine.Csv.GZ", "mine.JSONL", "mine.jsonl.Gz"])
def test_suffixes_may_be_capitals(name: str, tmp_path: Path) -> None:
    rows = "\n".join(map(json.dumps, ROWS))
    content = rows if "json" in name.lower() else table("text,label", "film {n},{label}")
    packed = gzip.compress(content.encode()) if name.lower().endswith("gz") else content.encode()
    (tmp_path / name).write_bytes(packed)
    task = files.load(
        str(tmp_path / name), validation_file=None, text="text", text_pair=None, label="label", problem="auto", seed=1
    )
    assert task.labels == ("a", "b")


@pytest.mark.parametrize("name", ["two.csv", "two.jsonl"])
def test_a_relative_path_that_leads_nowhere_says_from_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, said in ((Path("d") / name, True), (tmp_path / "d" / name, False)):
        with pytest.raises(eb.Refused, match=f"{name} cannot be read") as refused:
            files.load(
                str(path), validation_file=None, text="text", text_pair=None, label="label", problem="auto", seed=1
            )
        assert (f"; it is looked for from {tmp_path}, where this command runs" in str(refused.value)) == said
