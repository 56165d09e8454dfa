"""Runs on a person's own files, which may change behind a run's back."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.conftest import sentiment_rows

from .conftest import run


def write(path: Path, labels: tuple[str, str], count: int = 40) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([row["sentence"], labels[row["label"]]] for row in sentiment_rows(count))


@pytest.fixture
def trained(tmp_path: Path, model_folder: Path) -> Path:
    write(tmp_path / "mine.csv", ("bad\tfilm", "good\nfilm"))
    words = ["--train-file", tmp_path / "mine.csv", "--model", model_folder, "--device", "cpu", "--method", "dense"]
    small = [
        "--max-length",
        "16",
        "--batch-size",
        "8",
        "--dense-epochs",
        "1",
        "--profile-steps",
        "0",
        "--precision",
        "no",
    ]
    assert run("finetune", *words, *small, "--output", tmp_path / "run") == 0
    return tmp_path / "run"


def test_data_that_changed_behind_a_run(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", trained) == 0
    assert "note: these are not the rows" not in capsys.readouterr().out
    assert run("predict", trained, "--split", "validation", "--output", tmp_path / "mine") == 0
    lines = (tmp_path / "mine" / "predictions.tsv").read_text().splitlines()
    assert all(line.split("\t")[1] in ("bad film", "good film") for line in lines[1:])
    capsys.readouterr()
    write(tmp_path / "mine.csv", ("bad\tfilm", "good\nfilm"), count=80)
    assert run("evaluate", trained) == 0
    assert "note: these are not the rows that the run validated on" in capsys.readouterr().out
    write(tmp_path / "mine.csv", ("negative", "a positive"))
    for words in (("evaluate", trained), ("predict", trained, "--split", "validation", "--output", tmp_path / "other")):
        assert run(*words) == 2
        assert (
            "are a positive, negative now, and the model was trained on bad film, good film" in capsys.readouterr().err
        )
    assert not (tmp_path / "other").exists()
