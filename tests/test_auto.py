"""After `import earlybert` stock loading knows cut models, and is otherwise as it was."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel

import earlybert
from earlybert import apply
from tests.conftest import tiny_batch, tiny_model
from tests.export.test_export import TICKET


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """A saved cut model."""
    small = apply(tiny_model("bert", id2label={0: "bad", 1: "good"}), TICKET)
    earlybert.save(small, tmp_path / "cut", tokenizer=tiny_tokenizer)
    return tmp_path / "cut"


def fresh(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    place = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=place, stdin=subprocess.DEVNULL
    )


def test_import_is_light_and_stock_models_load_as_before(folder: Path, tmp_path: Path) -> None:
    tiny_model("bert", head=False).save_pretrained(tmp_path / "whole")
    done = fresh(f"""
import sys, earlybert
assert not {{"torch", "transformers", "numpy"}} & set(sys.modules)
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel, pipeline
whole = AutoModel.from_pretrained(r"{tmp_path / "whole"}")
assert type(whole) is BertModel and type(whole.config) is BertConfig
assert not [finder for finder in sys.meta_path if type(finder).__module__ == "earlybert.auto"]
ask = pipeline("text-classification", model=r"{folder}")
assert ask("a good film")[0]["label"] in ("bad", "good")
""")
    assert done.returncode == 0, done.stderr


def test_without_earlybert_and_without_trust_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    done = fresh(
        f"""
import sys
sys.modules["earlybert"] = None
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
AutoTokenizer.from_pretrained(r"{folder}")
try:
    AutoModelForSequenceClassification.from_pretrained(r"{folder}")
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
else:
    raise SystemExit("loaded without asking")
ask = pipeline("text-classification", model=r"{folder}", trust_remote_code=True)
assert ask("a good film")[0]["label"] in ("bad", "good")
""",
        HF_MODULES_CACHE=str(tmp_path / "modules"),
    )
    assert done.returncode == 0, done.stderr


def test_loaded_models_are_stock_and_save_themselves_again(folder: Path, tmp_path: Path) -> None:
    """Here transformers was imported first."""
    batch = tiny_batch(labels=False)
    expected = earlybert.load(folder)(**batch).logits
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again(**batch).logits, expected)
    assert type(again).__module__.startswith("transformers.")
    assert isinstance(again.config, BertConfig)
    assert (again.config.model_type, again.config.to_dict()["model_type"]) == ("bert", "bert")
    bare = AutoModel.from_pretrained(folder)  # another head, or none, of the same cut encoder
    assert type(bare) is BertModel
    assert bare.encoder.layer[0].intermediate.dense.out_features == len(TICKET.neurons[0])
    fresh_one = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    assert fresh_one.num_parameters() == bare.num_parameters()


def test_configurations_can_be_copied_and_pickled(folder: Path) -> None:
    config = earlybert.load(folder).config
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(other) is type(config)
        assert other.to_dict() == config.to_dict()


def test_folders_of_earlier_versions_load(folder: Path) -> None:
    """They said the stock type, and had neither the code nor the parts."""
    expected = earlybert.load(folder)(**tiny_batch(labels=False)).logits
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"], config["earlybert"]["parts"]
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    (folder / "modeling_earlybert.py").unlink()
    model = earlybert.load(folder)
    assert torch.equal(model(**tiny_batch(labels=False)).logits, expected)
    assert earlybert.ticket_of(model) == TICKET
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_a_tampered_ticket_is_a_sentence(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for entry in (None, [], {}, {"ticket": 3}):
        (folder / "config.json").write_text(json.dumps({**config, "earlybert": entry}))
        with pytest.raises(earlybert.Refused):
            AutoModel.from_pretrained(folder)
        with pytest.raises(earlybert.Refused):
            earlybert.load(folder)
