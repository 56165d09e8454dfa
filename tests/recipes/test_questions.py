"""Whole runs on questions: what is learned, what is scored, what is handed in, and going on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForQuestionAnswering

import earlybert as eb
from earlybert.cli import main
from earlybert.tasks import Predictions
from tests.conftest import question_rows, sentiment_rows, write_jsonl
from tests.tasks.test_squad import official_f1, reference_span

from .conftest import Killed, dying_at, equal, steps


@pytest.fixture
def flags(model_folder: Path, data_dir: Path) -> list[str]:
    return [
        *("--model", str(model_folder), "--task", "squad", "--data-dir", str(data_dir), "--device", "cpu"),
        *("--max-length", "32", "--stride", "8", "--batch-size", "8", "--precision", "no", "--align", "8"),
        *("--heads", "1", "--dense-lr", "2e-3", "--lr", "4e-3", "--log-every", "5", "--checkpoint-every", "4"),
    ]


def run(*words: object) -> int:
    return main([str(word) for word in words])


def answers_one_by_one(folder: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Every window alone, without padding, cut here: what the reference script would answer."""
    model, tokenizer = eb.load(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, BertForQuestionAnswering)
    found = {}
    for row in rows:
        words = row["context"].split()  # a word of these rows is a token
        question = row["question"].replace("?", " ?").split()
        room = 32 - 3 - len(question)
        starts = range(0, len(words) - 8, room - 8) if len(words) > room else [0]
        spans = []
        for at in starts:
            part = words[at : at + room]
            ids = tokenizer.convert_tokens_to_ids(["[CLS]", *question, "[SEP]", *part, "[SEP]"])
            types = [0] * (len(question) + 2) + [1] * (len(part) + 1)
            with torch.no_grad():
                out = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
            context = [False] * (len(question) + 2) + [True] * len(part) + [False]
            best = reference_span(out.start_logits[0].numpy(), out.end_logits[0].numpy(), context, 20, 30)
            if best:
                shift = at - len(question) - 2
                spans.append((best[0], best[1] + shift, best[2] + shift))
        _, first, last = max(spans)
        found[row["id"]] = " ".join(words[first : last + 1])
    return found


@pytest.mark.parametrize("engine", ["eager", "fast"])
def test_a_whole_run_learns_to_answer(
    engine: str, flags: list[str], tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings = ["--engine", engine, "--search-steps", "8", "--epochs", "12", "--eval-every", "100"]
    assert run("finetune", *flags, *settings, "--output", out) == 0
    printed = capsys.readouterr().out
    assert "96 rows to train (" in printed
    assert "windows)" in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["headline"], metrics["train_rows"], metrics["validation_rows"]) == ("f1", 96, 40)
    assert metrics["score"]["f1"] > 0.7  # one word in about 22 is the answer
    assert metrics["engine"] == {"eager": "EagerStep", "fast": "RaggedStep"}[engine]
    rows = question_rows(40, 2)
    predictions = Predictions.load(out / "predictions.safetensors")
    assert predictions.score() == metrics["score"]
    assert predictions.ids == tuple(row["id"] for row in rows)
    expected = answers_one_by_one(out / "model", rows)
    assert dict(zip(predictions.ids, predictions.answers or (), strict=True)) == expected
    each = [official_f1(expected[row["id"]], row["answers"]["text"][0]) for row in rows]
    assert predictions.values == pytest.approx(np.array(each))
    assert run("evaluate", out) == 0
    assert f"f1 {metrics['score']['f1']:.4f}, exact_match" in capsys.readouterr().out
    assert run("predict", out, "--split", "validation") == 0
    assert json.loads((out / "submission" / "predictions.json").read_text()) == expected
    assert run("predict", out) == 2  # there is no squad/test.jsonl.gz
    assert "test.jsonl.gz cannot be read" in capsys.readouterr().err


def test_killed_and_resumed_is_bit_equal(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*flags, "--engine", "fast", "--search-steps", "6", "--epochs", "1"]
    assert run("finetune", *settings, "--output", tmp_path / "whole") == 0
    for fatal in (5, 13):
        out = tmp_path / f"killed-{fatal}"
        revive = dying_at(monkeypatch, fatal)
        with pytest.raises(Killed):
            run("finetune", *settings, "--output", out)
        revive()
        assert run("finetune", "--output", out, "--resume", "--offline") == 0
        assert equal(tmp_path / "whole", out)
        assert steps(out) == steps(tmp_path / "whole")
        files = [(folder / "predictions.safetensors").read_bytes() for folder in (out, tmp_path / "whole")]
        assert files[0] == files[1]


def test_compare_runs_on_questions(flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("finetune", *flags, "--search-steps", "3", "--epochs", "1", "--compare", "--output", out) == 0
    rows = json.loads((out / "compare.json").read_text())["rows"]
    assert all(row["headline"] == "f1" and row["inference_ms_per_row"] > 0 for row in rows.values())


def test_a_refusal_leaves_nothing_behind(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = question_rows(20)
    rows[4]["answers"]["answer_start"] = [0]
    rows[4]["answers"]["text"] = ["nowhere"]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "data" / "squad" / f"{split}.jsonl.gz", rows)
    words = [*flags, "--data-dir", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    assert run("finetune", *words) == 2
    assert "leave them out with --bad-answers drop" in capsys.readouterr().err
    assert run("finetune", *flags, "--stride", "40", "--output", tmp_path / "out") == 2
    assert "must be more than the stride of 40" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run("finetune", *words, "--bad-answers", "drop", "--search-steps", "2", "--epochs", "1") == 0
    assert "1 of 20 questions" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["train_rows"] == 19


def test_test_rows_of_a_glue_task_are_handed_in(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file holds what the saved model says of each row, one by one."""
    data = tmp_path / "data"
    for split, count in (("train", 48), ("validation", 16), ("test", 9)):
        write_jsonl(data / "sst2" / f"{split}.jsonl.gz", sentiment_rows(count, seed=count))
    out = tmp_path / "run"
    assert run("train", out) == 2
    words = ["--model", model_folder, "--task", "sst2", "--data-dir", data, "--max-length", "24", "--align", "8"]
    settings = ["--batch-size", "4", "--search-steps", "3", "--epochs", "8", "--lr", "2e-3", "--precision", "no"]
    assert run("finetune", *words, *settings, "--output", out) == 0
    assert run("predict", out, "--output", tmp_path / "mine") == 0
    model, tokenizer = eb.load(out / "model"), AutoTokenizer.from_pretrained(out / "model")
    lines = (tmp_path / "mine" / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    for row, line in zip(sentiment_rows(9, seed=9), lines[1:], strict=True):
        with torch.no_grad():
            said = int(model(**tokenizer(row["sentence"], return_tensors="pt")).logits.argmax())
        assert line == f"{row['idx']}\t{said}"
    assert len({line.split("\t")[1] for line in lines[1:]}) == 2
    assert run("predict", tmp_path / "none") == 2
    assert run("predict", out, "--split", "dev") == 2
    assert "--split" in capsys.readouterr().err
