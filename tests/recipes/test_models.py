"""The command line fine-tunes whatever encodes text and refuses the rest before any compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModel, PreTrainedTokenizerFast

import earlybert as eb
from earlybert.cli import main
from tests.families import config_of


def folder_of(name: str, tokenizer: PreTrainedTokenizerFast, where: Path) -> Path:
    config = config_of(name, pad_token_id=None if name in ("gpt2", "llama") else 0)
    AutoModel.from_config(config).save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def flags(model: Path, data_dir: Path, out: Path) -> list[str]:
    return [
        *("finetune", "--model", str(model), "--task", "sst2", "--data-dir", str(data_dir), "--device", "cpu"),
        *("--max-length", "16", "--batch-size", "8", "--precision", "no", "--align", "8", "--heads", "1"),
        *("--recipe", "paper", "--epochs", "1", "--engine", "fast", "--output", str(out)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mpnet", "deberta-v2", "albert", "modernbert", "gpt2", "llama"])
def test_a_whole_run(name: str, tiny_tokenizer: PreTrainedTokenizerFast, data_dir: Path, tmp_path: Path) -> None:
    model = folder_of(name, tiny_tokenizer, tmp_path / "model")
    assert main(flags(model, data_dir, tmp_path / "run")) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 <= metrics["score"]["accuracy"] <= 1
    assert metrics["stages"]["search"]["flops"] > 0
    ticket = eb.ticket_of(eb.load(tmp_path / "run" / "model"))
    assert ticket is not None
    assert {len(heads) for heads in ticket.heads} == {3}


@pytest.mark.parametrize("more", [("--method", "surgeon_searched"), ("--refit", "4")])
def test_what_goes_layer_by_layer_is_refused_before_the_search_where_layers_are_shared(
    more: tuple[str, str],
    tiny_tokenizer: PreTrainedTokenizerFast,
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = folder_of("albert", tiny_tokenizer, tmp_path / "model")
    assert main([*flags(model, data_dir, tmp_path / "run"), *more]) == 2
    assert "need layers that run once; this albert model" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["vit", "bart", "t5"])
def test_what_does_not_only_encode_text_is_refused(
    name: str,
    tiny_tokenizer: PreTrainedTokenizerFast,
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = folder_of(name, tiny_tokenizer, tmp_path / "model")
    assert main(flags(model, data_dir, tmp_path / "run")) == 2
    assert f"is of type '{name}', which does not only encode text" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
