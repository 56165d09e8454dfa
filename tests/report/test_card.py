"""Model cards: metadata that the hub's own classes accept, numbers of the run, and a model that comes back."""

from __future__ import annotations

import html
import json
import re
import shutil
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import CommitOperationAdd, ModelCard

import earlybert as eb
from earlybert.recipes.report import write_card
from earlybert.recipes.run import Run
from earlybert.ticket.card import model_card, one_line
from tests.conftest import tiny_batch, tiny_model

from .conftest import read_json


@pytest.fixture
def small() -> Any:
    model = tiny_model("bert")
    ticket = eb.Ticket(((0, 1), (2,), (0, 1, 3)), (tuple(range(32)), tuple(range(8)), tuple(range(64))), "bert", 4, 64)
    return eb.apply(model, ticket)


def table(text: str, title: str) -> dict[str, list[str]]:
    """Rows of the first Markdown table after a heading, by their first cell."""
    lines = dropwhile(lambda line: not line.startswith("|"), text.split(title, 1)[1].splitlines())
    rows = takewhile(lambda line: line.startswith("|"), lines)
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)}


def test_the_card_of_a_run_says_what_its_folder_says(compared: Path) -> None:
    card, metrics = ModelCard.load(compared / "model" / "README.md"), read_json(compared / "metrics.json")
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    for kind, task in (
        ("GPT2LMHeadModel", "text-generation"),
        ("LlamaForCausalLM", "text-generation"),
        ("BertModel", "feature-extraction"),
        ("GPT2DoubleHeadsModel", None),
    ):
        assert ModelCard(model_card(kind, "gpt2", None)).data.pipeline_tag == task
    assert {"earlybert", "bert", "pruned"} <= set(data.tags)
    assert data.base_model is None  # a folder on this machine is no name on the hub
    assert data.datasets == ["nyu-mll/glue"]
    (result,) = data.eval_results
    assert (result.dataset_config, result.dataset_split) == ("sst2", "validation")
    assert (result.metric_type, result.metric_value) == ("accuracy", metrics["score"]["accuracy"])
    score, interval = table(card.text, "## Scores")["accuracy"]
    assert score == f"{metrics['score']['accuracy']:.4f}"
    low, high = map(float, interval.split(" to "))
    assert low < metrics["score"]["accuracy"] < high
    ticket = eb.Ticket.load(compared / "ticket.json")
    cut = table(card.text, "## What was cut")
    for layer in range(3):
        heads, neurons = len(ticket.heads[layer]), len(ticket.neurons[layer])
        assert cut[str(layer + 1)] == [f"{heads} of 4", f"{neurons} of 64"]
    costs = table(card.text, "## Costs")
    assert costs["train"][0] == str(metrics["stages"]["train"]["steps"])
    assert "honest rival" in card.text
    assert "## Limitations" in card.text
    dense = ModelCard.load(compared / "dense" / "model" / "README.md")
    assert "## What was cut" not in dense.text
    assert "pruned" not in dense.data.tags


def test_the_code_on_a_card_loads_the_model(small: Any, tmp_path: Path) -> None:
    eb.save(small, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    code = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)[0].replace("FOLDER", str(tmp_path / "out"))
    space: dict[str, Any] = {}
    exec(code, space)
    batch = tiny_batch()
    assert torch.equal(space["model"](**batch).logits, small.eval()(**batch).logits)


def test_what_somebody_wrote_reads_on_a_card_as_it_was_written() -> None:
    written = "macro_f1 | #1 <b>*[x](y)*</b> `{}` \\"
    assert html.unescape(one_line(written)) == written
    assert not set("|_#<>") & set(one_line(written).replace("&#", ""))


def test_a_card_of_ones_own_stays(small: Any, tmp_path: Path) -> None:
    eb.save(small, tmp_path)
    (tmp_path / "README.md").write_text("# mine\n")
    eb.save(small, tmp_path)
    assert (tmp_path / "README.md").read_text() == "# mine\n"


def test_text_of_others_cannot_break_the_metadata(compared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compared, tmp_path / "copy"))
    evil = "x\n---\nlicense: mit\n# <script>alert(1)</script> | `"
    metrics = read_json(folder / "metrics.json")
    metrics["task"], metrics["environment"]["device"] = evil, evil
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_card(Run.open(folder))
    card = ModelCard.load(folder / "model" / "README.md")
    assert card.data.license is None
    assert card.data.eval_results[0].dataset_name == evil
    assert "<script>" not in card.text
    assert "\n# &#60;" not in card.text


def test_push_to_hub_by_the_ordinary_mixin(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub played by a folder: what the mixin hands over is a model that `load` reads, and the card stays."""
    from transformers.utils import hub

    eb.save(small, tmp_path / "out")
    there = tmp_path / "hub"
    there.mkdir()
    shutil.copy(tmp_path / "out" / "README.md", there)  # ModelCard.push_to_hub, the step before

    class Hub:
        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})()

        def create_commit(self, *, operations: list[CommitOperationAdd], **_: Any) -> None:
            for operation in operations:
                with operation.as_file() as file:
                    (there / operation.path_in_repo).write_bytes(file.read())

    monkeypatch.setattr(hub, "hf_api", Hub, raising=False)
    real = ModelCard.load
    monkeypatch.setattr(hub.ModelCard, "load", lambda name, **_: real(there / "README.md"))
    if not hasattr(hub, "_hf_api"):
        pytest.skip("another version of transformers calls the hub in another way")
    eb.load(tmp_path / "out").push_to_hub("somebody/small")
    again, batch = eb.load(there), tiny_batch()
    assert torch.equal(again(**batch).logits, small.eval()(**batch).logits)
    assert eb.ticket_of(again) == eb.ticket_of(small)
    card = real(there / "README.md")
    assert "How to load it" in card.text
    assert yaml.safe_load(card.data.to_yaml())["tags"][0] == "earlybert"
