"""Layers taken out of models of every family: they train, are saved, and load as stock models of fewer layers."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import earlybert
from earlybert import Refused
from earlybert.baselines.layerdrop import LayerDrop, kept_layers, refuse_unremovable, remove_layers
from earlybert.cost import count
from tests.conftest import word_tokenizer
from tests.families import FAMILIES, NEW, SIZES, build, inputs_of
from tests.recipes.conftest import run, tiny_flags

SHARED = {"albert", "albert/groups"}
"""Refused."""
SIX = {**SIZES, "num_hidden_layers": 6}
MIXED: dict[str, dict[str, Any]] = {
    "modernbert": {**SIX, "local_attention": 4, "global_attn_every_n_layers": 3},
    "qwen2": {**SIX, "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 3},
}
"""Layers that attend in two ways."""
LOADING = """
import json, sys
import torch, earlybert
from safetensors.torch import load_file

found = {}
for number in range(int(sys.argv[2])):
    model = earlybert.load(f"{sys.argv[1]}/{number}", attn_implementation="eager")
    batch = load_file(f"{sys.argv[1]}/{number}.safetensors")
    expected = batch.pop("expected")
    with torch.no_grad():
        found[number] = float((model(**batch).logits - expected).abs().max())
print(json.dumps(found))
"""


def models() -> dict[str, Any]:
    """One of each family, as it is made by default: decoders keep a cache."""
    cached = {name: {} if "image_size" in sizes else {"use_cache": True} for name, sizes in FAMILIES.items()}
    found = {name: build(name, **changes) for name, changes in cached.items() if name not in SHARED}
    mixed = MIXED if NEW else {}  # 4.57 has no types of layers for ModernBERT
    return {**found, **{f"{name}/mixed": build(name, **sizes) for name, sizes in mixed.items()}}


def test_fewer_layers_train_and_load_in_a_fresh_process(tmp_path: Path) -> None:
    names = []
    for number, (name, model) in enumerate(models().items()):
        layers = model.config.num_hidden_layers
        remove_layers(model, kept_layers(layers))
        assert count(model).parameters == model.num_parameters(), name
        loss = model.train()(**inputs_of(model, labels=True)).loss
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=1e-2).step()
        batch = inputs_of(model.eval())
        earlybert.save(model, tmp_path / str(number))
        with torch.no_grad():
            save_file({**batch, "expected": model(**batch).logits}, tmp_path / f"{number}.safetensors")
        names.append(name)
    words = [sys.executable, "-c", LOADING, str(tmp_path), str(len(names))]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {names[int(number)]: error for number, error in found.items() if error > 1e-6} == {}
    assert len(found) == len(names) >= len(FAMILIES) - len(SHARED)


def test_skipped_layers_are_removed_layers_in_every_family() -> None:
    for name, whole in models().items():
        model, batch = copy.deepcopy(whole).train(), inputs_of(whole)
        if name == "qwen2/mixed":
            with pytest.raises(Refused, match="tells what a layer attends to by its place"):
                LayerDrop(model, count(model), seed=0)
            continue
        dropping = LayerDrop(model, count(model), rate=0.5, seed=3)
        for step in range(3):
            dropping._draw(step)
            removed = copy.deepcopy(whole)
            remove_layers(removed, dropping.present)
            with torch.no_grad():
                torch.testing.assert_close(model.train()(**batch).logits, removed(**batch).logits, msg=name)
                torch.testing.assert_close(model.eval()(**batch).logits, whole(**batch).logits, msg=name)


def test_types_and_places_of_layers_go_along() -> None:
    model = models()["gpt2"]
    remove_layers(model, [0, 2])
    assert [block.attn.layer_idx for block in model.transformer.h] == [0, 1]
    if NEW:
        model = build("modernbert", **MIXED["modernbert"])
        before = model.config.layer_types
        remove_layers(model, [0, 2, 3, 5])
        assert model.config.layer_types == [before[index] for index in (0, 2, 3, 5)]
        assert [layer.attention_type for layer in model.model.layers] == model.config.layer_types


def test_models_that_fewer_layers_cannot_say_are_refused(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in SHARED:
        with pytest.raises(Refused, match="are not a plain list; LayerDrop cannot take one out"):
            refuse_unremovable(build(name))
    model = build("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(Refused, match="depends on its number; LayerDrop cannot take one out"):
        remove_layers(model, [0, 2])
    assert model.config.num_hidden_layers == 3
    model.save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    for method in ("layerdrop", "layerdrop_trained"):
        words = ["--method", method, "--output", tmp_path / "run"]
        assert run("finetune", *tiny_flags(tmp_path / "model", data_dir), *words) == 2
        assert "depends on its number" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["layerdrop", "layerdrop_trained"])
def test_a_whole_run_on_a_decoder(method: str, data_dir: Path, tmp_path: Path) -> None:
    build("gpt2", use_cache=True, pad_token_id=0).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    words = ["--method", method, "--dense-epochs", "0.5", "--output", tmp_path / "run"]
    assert run("finetune", *tiny_flags(tmp_path / "model", data_dir), *words) == 0
    assert len(earlybert.load(tmp_path / "run" / "model").transformer.h) == 2
