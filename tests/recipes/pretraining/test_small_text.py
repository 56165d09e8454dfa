"""Little or odd text: what is said of it before a run is lost on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus import documents
from tests.recipes.conftest import run

SMALL = [
    *("--layers", "1", "--hidden", "16", "--attention-heads", "2", "--intermediate", "16", "--positions", "32"),
    *("--steps", "4", "--second", "0", "--length", "24", "--batch", "4", "--rows", "4", "--warmup", "0.3"),
    *("--eval-rows", "4", "--method", "dense", "--device", "cpu", "--profile-steps", "0", "--log", "plain"),
]


def prepared(folder: Path, texts: list[str], tokenizer: Path, held_out: float) -> Path:
    (folder / "text.txt").write_text("\n\n".join(texts))
    words = ["--tokenizer", str(tokenizer), "--held-out", str(held_out), "--workers", "1", "--log", "plain"]
    assert run("prepare", str(folder / "text.txt"), *words, "--output", folder / "corpus") == 0
    return folder / "corpus"


def test_too_little_to_validate_on_is_said_at_once(
    tmp_path: Path,
    tokenizer_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = prepared(tmp_path, documents(20), tokenizer_folder, 0.0)
    assert (
        "0 documents are held out, and pretrain validates on 2 at least; a larger --held-out" in capsys.readouterr().out
    )
    assert run("pretrain", *SMALL, "--corpus", corpus, "--output", tmp_path / "run") == 2
    assert "0 documents for validation; pairs need two (a blank line" in (said := capsys.readouterr().err)
    assert f"delete {corpus} and prepare the corpus again with a larger --held-out" in said


def test_documents_of_one_sentence_are_pointed_out_where_pairs_are_made(
    tmp_path: Path,
    tokenizer_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [line.split(".")[0] + "." for text in documents(120) for line in text.split("\n")]
    corpus = prepared(tmp_path, [line for line in lines if "?" not in line and "!" not in line], tokenizer_folder, 0.1)
    assert "held out, and" not in capsys.readouterr().out
    assert run("pretrain", *SMALL, "--corpus", corpus, "--output", tmp_path / "pairs") == 0
    assert "note: 100% of the documents hold one sentence" in capsys.readouterr().out
    assert run("pretrain", *SMALL, "--pairs", "false", "--corpus", corpus, "--output", tmp_path / "packed") == 0
    assert "hold one sentence" not in capsys.readouterr().out


def test_a_run_of_the_other_kind_is_called_so(
    tmp_path: Path,
    tokenizer_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = prepared(tmp_path, documents(60), tokenizer_folder, 0.2)
    out = tmp_path / "run"
    assert run("pretrain", *SMALL, "--corpus", corpus, "--output", out) == 0
    assert "hold one sentence" not in capsys.readouterr().out
    for words in (("evaluate", out), ("predict", out), ("finetune", "--resume", "--output", out)):
        assert run(*words) == 2
        assert f"{out} is a pre-training run, which this command is not made for." in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("task: sst2\nmodel: minilm\n")
    assert run("pretrain", "--resume", "--output", tmp_path / "other") == 2
    assert "is a fine-tuning run, which" in capsys.readouterr().err
