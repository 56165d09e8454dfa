"""A cut model of every family, loaded in a fresh process, with and without earlybert."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import earlybert
from earlybert import Ticket, apply

from .families import FAMILIES, build, inputs_of, kinds, uneven

LANGUAGE = ("ForMaskedLM", "LMHeadModel", "ForCausalLM", "ForConditionalGeneration")
"""Heads that share their weights with the embeddings."""


WAYS = {
    "import earlybert": ("earlybert.load", "Auto class"),
    "sys.modules['earlybert'] = None  # as if it were not installed": ("remote code",),
}
LOADING = """
import json, sys
{begin}
import transformers
from safetensors.torch import load_file

def load(folder, way):
    if way == "earlybert.load":
        return earlybert.load(folder, attn_implementation="eager")
    with open(folder + "/config.json") as file:
        config = json.load(file)
    auto = next(auto for auto, kind in config["auto_map"].items() if kind.endswith("." + config["architectures"][0]))
    trust = True if way == "remote code" else None
    return getattr(transformers, auto).from_pretrained(folder, attn_implementation="eager", trust_remote_code=trust)

found = []
for number, way in ((number, way) for number in range({count}) for way in {ways}):
    model = load("{folder}/" + str(number), way).requires_grad_(False)
    batch = load_file(f"{folder}/{{number}}.safetensors")
    expected = batch.pop("expected")
    found.append({{
        "number": number,
        "way": way,
        "error": float((model(**batch).logits - expected).abs().max()),
        "class": type(model).__module__ + "." + type(model).__name__,
        "type": model.config.model_type,
        "training": model.training,
        "ticket": model.config.earlybert["ticket"],
    }})
print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What fresh processes find in cut models of all families: a classifier of each, and each language model."""
    folder = tmp_path_factory.mktemp("families")
    saved: list[tuple[str, str | None]] = [(name, None) for name in FAMILIES]
    saved += [(name, kind) for name in FAMILIES for kind in kinds(name) if kind.endswith(LANGUAGE)]
    classes: list[str] = []
    for number, (name, kind) in enumerate(saved):
        model = build(name, kind)
        classes.append(f"{type(model).__module__}.{type(model).__name__}")
        small, batch = apply(model, uneven(model)), inputs_of(model)
        earlybert.save(small, folder / str(number))
        with torch.no_grad():
            save_file({**batch, "expected": small(**batch).logits}, folder / f"{number}.safetensors")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in FAMILIES}
    for begin, ways in WAYS.items():
        program = LOADING.format(ways=ways, begin=begin, count=len(saved), folder=folder.as_posix())
        place = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules")}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=place)
        assert done.returncode == 0, done.stderr
        for found in json.loads(done.stdout.splitlines()[-1]):
            name, kind = saved[found["number"]]
            assert found["class"] == classes[found["number"]], found
            results[name].append(found)
    return results


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded_in_a_fresh_process(name: str, loaded: dict[str, list[dict[str, Any]]]) -> None:
    """By `earlybert.load`, by an Auto class once earlybert is imported, and by the code in the folder without it."""
    ticket = uneven(build(name))
    assert {found["way"] for found in loaded[name]} == {way for ways in WAYS.values() for way in ways}
    for found in loaded[name]:
        assert found["error"] <= 1e-6, found
        assert not found["training"]
        assert found["type"] == name.partition("/")[0]
        assert Ticket.from_dict(found["ticket"]) == ticket
