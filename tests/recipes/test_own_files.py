"""Runs on a person's own files, which may change behind a run's back."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.conftest import sentiment_rows

from .conftest import Killed, dying_at, run


def write(path: Path, labels: tuple[str, str], count: int = 40) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([row["sentence"], labels[row["label"]]] for row in sentiment_rows(count))


@pytest.fixture
def words(tmp_path: Path, model_folder: Path) -> list[object]:
    write(tmp_path / "mine.csv", ("bad\tfilm", "good\nfilm"))
    own = ["--train-file", tmp_path / "mine.csv", "--model", model_folder, "--device", "cpu", "--precision", "no"]
    return [*own, "--max-length", 16, "--batch-size", 8, "--dense-epochs", 1, "--profile-steps", 0]


@pytest.fixture
def trained(tmp_path: Path, words: list[object]) -> Path:
    assert run("finetune", *words, "--method", "dense", "--output", tmp_path / "run") == 0
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


def test_a_run_goes_on_with_the_rows_it_began_with(
    words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search, a checkpoint, and a ticket that its rivals are to be trained beside."""
    folder = tmp_path / "run"
    ticket = ["--heads", 1, "--align", 8, "--search-steps", 3, "--epochs", 1, "--checkpoint-every", 2]
    assert run("search", *words, *ticket, "--output", folder) == 0
    assert run("draw", folder) == 0
    again, goes_on = ("train", folder), ("finetune", "--output", folder, "--resume")

    def other_rows_are_refused(*command: object) -> None:
        before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        write(tmp_path / "mine.csv", ("bad\tfilm", "good\nfilm"), count=44)
        assert run(*command) == 2
        error = capsys.readouterr().err
        assert "was begun on another text than" in error
        assert "mine.csv holds now" in error
        assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        write(tmp_path / "mine.csv", ("bad\tfilm", "good\nfilm"))

    other_rows_are_refused(*again)
    other_rows_are_refused(*goes_on)
    revive = dying_at(monkeypatch, 4)
    with pytest.raises(Killed):
        run(*again)
    revive()
    other_rows_are_refused(*again)
    assert run(*again) == 0
    other_rows_are_refused(*goes_on, "--compare")
