"""Runs on a person's own files, which may change behind a run's back."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import earlybert as eb
from earlybert.config.finetune import Data
from earlybert.tasks import Predictions, load
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


def written(file: Path) -> list[list[str]]:
    return [line.split("\t") for line in file.read_text().splitlines()]


def outputs(folder: Path, *texts: list[str]) -> torch.Tensor:
    """Logits of each row alone, by the stock call."""
    model, tokenizer = eb.load(folder / "model"), AutoTokenizer.from_pretrained(folder / "model")
    with torch.no_grad():
        return torch.cat([model(**tokenizer(*row, return_tensors="pt")).logits for row in zip(*texts, strict=True)])


def test_new_rows_are_predicted_from_the_run_folder_alone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.csv").unlink()
    run_folder = Path(shutil.move(trained, tmp_path / "elsewhere"))
    texts = [row["sentence"] for row in sentiment_rows(9, seed=9)]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert run("predict", run_folder, "--file", tmp_path / "new.jsonl") == 0
    header, *lines = written(run_folder / "submission" / "predictions-new.tsv")
    assert header == ["index", "prediction", "probability"]
    chances = outputs(run_folder, texts).softmax(-1)
    assert [line[0] for line in lines] == [str(number) for number in range(9)]
    assert [line[1] for line in lines] == [("bad film", "good film")[number] for number in chances.argmax(-1)]
    assert [float(line[2]) for line in lines] == pytest.approx(chances.max(-1).values.tolist(), abs=1e-4)
    (tmp_path / "other.csv").write_text("body,text,label\n" + "".join(f"{text},,\n" for text in texts))
    assert run("predict", run_folder, "--file", tmp_path / "other.csv") == 2
    assert "row 1: column 'text' is empty" in capsys.readouterr().err
    words = ("predict", run_folder, "--file", tmp_path / "other.csv", "--text", "body", "--output", tmp_path / "out")
    assert run(*words) == 0
    assert written(tmp_path / "out" / "predictions-other.tsv") == [header, *lines]
    (tmp_path / "new.tsv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    assert run("predict", run_folder, "--file", tmp_path / "new.tsv") == 0
    assert "note: 9 of 9 texts in" in capsys.readouterr().out
    for more, sentence in (
        (("--split", "test"), "give either --split or --file, not both"),
        (("--text-pair", "label"), "was trained on one text a row; leave --text-pair out"),
    ):
        assert run(*words, *more) == 2
        assert sentence in capsys.readouterr().err
    assert run("predict", run_folder, "--text", "body") == 2
    assert "are columns of --file; give it, too" in capsys.readouterr().err


def test_values_are_predicted_in_fp32_whatever_they_were_trained_in(model_folder: Path, tmp_path: Path) -> None:
    """Of the rows that were held out and of new pairs; bf16 keeps three digits."""
    rows = [(row["sentence"], f"it was {row['label']}", row["label"] + 0.5) for row in sentiment_rows(24)]
    lines = "".join(f"{a},{b},{value}\n" for a, b, value in rows)
    (tmp_path / "pairs.csv").write_text(f"one,two,stars\n{lines}")
    words = ["--train-file", tmp_path / "pairs.csv", "--text", "one", "--text-pair", "two", "--label", "stars"]
    settings = [
        "--model",
        model_folder,
        "--device",
        "cpu",
        "--method",
        "dense",
        "--dense-steps",
        2,
        "--profile-steps",
        0,
    ]
    settings += ["--max-length", 24, "--precision", "bf16"]
    assert run("finetune", *words, *settings, "--output", tmp_path / "run") == 0
    assert run("predict", tmp_path / "run", "--file", tmp_path / "pairs.csv", "--output", tmp_path / "out") == 0
    header, *lines = written(tmp_path / "out" / "predictions-pairs.tsv")
    assert header == ["index", "prediction"]
    expected = outputs(tmp_path / "run", *([row[side] for row in rows] for side in (0, 1)))[:, 0]
    assert [float(line[1]) for line in lines] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
    held = Predictions.load(tmp_path / "run" / "predictions.safetensors")
    assert held.values.tolist() == pytest.approx([float(expected[int(row)]) for row in held.ids or ()], rel=1e-4)


def test_new_rows_of_a_task_known_by_name(
    flags: list[str], data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its columns are those of the task; questions are refused."""
    (tmp_path / "new.csv").write_text("sentence,question,context\na good film,was it?,a good film\n")
    settings = ["--method", "dense", "--dense-steps", "2"]
    assert run("finetune", *flags, *settings, "--output", tmp_path / "run") == 0
    assert run("predict", tmp_path / "run", "--file", tmp_path / "new.csv") == 0
    assert written(tmp_path / "run" / "submission" / "predictions-new.tsv")[1][1] in ("negative", "positive")
    assert run("finetune", *flags, *settings, "--task", "squad", "--stride", "4", "--output", tmp_path / "asked") == 0
    assert run("predict", tmp_path / "asked", "--file", tmp_path / "new.csv") == 2
    assert "answers questions, and --file is for classes and values" in capsys.readouterr().err


def test_rows_that_were_held_out_go_by_their_number_in_the_file(trained: Path, tmp_path: Path) -> None:
    assert run("predict", trained, "--split", "validation", "--output", tmp_path / "mine") == 0
    _, *lines = written(tmp_path / "mine" / "predictions.tsv")
    assert len(lines) == 4
    assert [line[0] for line in lines] != ["0", "1", "2", "3"]
    texts = [row["sentence"] for row in sentiment_rows(40)]
    said = outputs(trained, [texts[int(line[0])] for line in lines]).argmax(-1)
    assert [line[1] for line in lines] == [("bad film", "good film")[number] for number in said]
    held = load(Data(train_file=str(tmp_path / "mine.csv"))).validation
    assert [texts[int(row)] for row in held.ids or ()] == list(held.texts)
