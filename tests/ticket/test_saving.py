"""A cut model on disk: saved whole or not at all, and loaded as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

import earlybert
from earlybert import Refused, apply
from tests.conftest import FAMILIES, tiny_batch, tiny_model, uneven

LOADING = """
import sys
from pathlib import Path
import torch, earlybert

for folder in map(Path, sys.argv[1:]):
    batch, expected, kind = torch.load(folder / "expected.pt")
    for name in ("by_save", "by_save_pretrained"):
        model = earlybert.load(folder / name)
        assert type(model).__name__ == kind, type(model)
        assert type(model).__module__.startswith("transformers."), type(model)
        assert not model.training
        assert model.config.id2label == {0: "bad", 1: "good"}
        assert (model(**batch).logits - expected).abs().max() <= 1e-6
        assert [len(kept) for kept in earlybert.ticket_of(model).heads] == [1, 3, 4]
"""


def test_saved_and_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    for family in FAMILIES:
        model = tiny_model(family, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}).eval()
        small, batch = apply(model, uneven(family)), tiny_batch(labels=False)
        earlybert.save(small, tmp_path / family / "by_save")
        small.save_pretrained(tmp_path / family / "by_save_pretrained")
        torch.save((batch, small(**batch).logits, type(small).__name__), tmp_path / family / "expected.pt")
        written = {"README.md", "config.json", "model.safetensors", "modeling_earlybert.py"}
        assert {file.name for file in (tmp_path / family / "by_save").iterdir()} == written
    folders = [str(tmp_path / family) for family in FAMILIES]
    subprocess.run([sys.executable, "-c", LOADING, *folders], check=True)


def test_saving_again_replaces_whole_files_and_a_whole_model_loads_too(tmp_path: Path) -> None:
    model = tiny_model().eval()
    earlybert.save(model, tmp_path / "out")
    assert earlybert.ticket_of(earlybert.load(tmp_path / "out")) is None
    earlybert.save(apply(model, uneven("bert")), tmp_path / "out")
    assert earlybert.ticket_of(earlybert.load(tmp_path / "out")) == uneven("bert")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_model_is_not_saved_over_a_file_and_no_temporary_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("mine")
    with pytest.raises(Refused, match=r"afile is a file; choose a folder to save to\.$"):
        earlybert.save(tiny_model(), tmp_path / "afile")
    with pytest.raises(
        Refused, match=r"could not be saved to \S+/afile/deep \((File exists|Not a directory)\); choose another f"
    ):
        earlybert.save(tiny_model(), tmp_path / "afile" / "deep")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    model = tiny_model()
    for part in (model.bert.encoder, torch.nn.DataParallel(model)):
        with pytest.raises(
            Refused, match=f"{type(part).__name__} is not a Hugging Face model .+; save the whole model"
        ):
            earlybert.save(part, tmp_path / "out")
    nowhere: Any = None
    with pytest.raises(Refused, match="the path to save to must be that of a folder, got None"):
        earlybert.save(model, nowhere)
    assert not list(tmp_path.iterdir())


def test_saving_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "scores.safetensors").write_bytes(b"mine")
    earlybert.save(tiny_model(), tmp_path)
    assert (tmp_path / "scores.safetensors").read_bytes() == b"mine"


def test_full_disk_while_saving_keeps_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().eval()
    earlybert.save(model, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(Refused, match=r"\(No space left on device\); free some space, and save again\.$"):
        earlybert.save(model, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_folders_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no config\.json"):
        earlybert.load(tmp_path)
    earlybert.save(apply(tiny_model(), uneven("bert")), tmp_path / "out")
    config = (tmp_path / "out" / "config.json").read_text()
    (tmp_path / "out" / "config.json").write_text(config.replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(Refused, match="changed after it was written"):
        earlybert.load(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(config.replace("BertForSequenceClassification", "os"))
    with pytest.raises(Refused, match="which transformers does not have"):
        earlybert.load(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(config)
    (tmp_path / "out" / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(Refused, match="cannot be loaded"):
        earlybert.load(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(Refused, match="no safetensors"):
        earlybert.load(tmp_path / "out")


class Mine(BertForSequenceClassification):
    """A class of somebody's own."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.more = torch.nn.Linear(config.hidden_size, 3)


def test_a_class_of_ones_own_is_loaded_by_giving_it(tmp_path: Path) -> None:
    model = Mine(tiny_model().config)
    small = apply(model, uneven("bert"))
    earlybert.save(small, tmp_path)
    with pytest.raises(Refused, match=r"'Mine', .+ earlybert\.load\(.+, kind=\.\.\.\)"):
        earlybert.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": 5}))
    with pytest.raises(Refused, match="'None'"):
        earlybert.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match="subclass of PreTrainedModel"):
        earlybert.load(tmp_path, kind=dict)
    again, info = earlybert.load(tmp_path, kind=Mine, output_loading_info=True, use_safetensors=True)
    assert type(again) is Mine
    assert not info["missing_keys"]
    for name, value in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_adapters_alone_are_not_saved(tmp_path: Path) -> None:
    model = tiny_model()
    model.peft_config = {}
    with pytest.raises(Refused, match="merge_and_unload"):
        earlybert.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_of_a_tokenizer_are_replaced(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: Path) -> None:
            (Path(folder) / "additional_chat_templates").mkdir()
            (Path(folder) / "additional_chat_templates" / "tool.jinja").write_text("x")

    for _ in range(2):
        earlybert.save(tiny_model(), tmp_path / "out", tokenizer=Tokenizer())
    assert (tmp_path / "out" / "additional_chat_templates" / "tool.jinja").exists()


def test_a_run_folder_says_where_its_model_is(tmp_path: Path) -> None:
    earlybert.save(tiny_model(), tmp_path / "run" / "model")
    with pytest.raises(Refused, match=r"run is not a model folder: .+; its model is in \S+/run/model\.$"):
        earlybert.load(tmp_path / "run")
