"""What was exported computes what the model computes, read back by the tools it is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BartForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import earlybert
from earlybert import Refused, Ticket, apply, draw, export
from earlybert.anatomy import of
from earlybert.baselines import random_ticket
from earlybert.cli import main
from earlybert.export import graph as graphs
from earlybert.export import onnx_file
from earlybert.tasks import demo
from tests.conftest import HEADS, LAYERS, NEURONS, VOCABULARY, tiny_batch, tiny_model

TICKET = Ticket(
    ((0,), (1, 2, 3), tuple(range(HEADS))), (tuple(range(7)), tuple(range(9, 50)), tuple(range(NEURONS))),
    "bert", HEADS, NEURONS,
)  # fmt: skip
FRESH = """
import json, sys
sys.modules["earlybert"] = None
import torch
from safetensors.torch import load_file
program = torch.export.load("{folder}/torch/model.pt2").module()
batches = [load_file("{folder}/" + str(number)) for number in range(3)]
expected = [batch.pop("logits") for batch in batches]
found = {{"torch": [float((program(**b)[0] - e).abs().max()) for b, e in zip(batches, expected)]}}
found["alone"] = "transformers" not in sys.modules
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained("{folder}/expanded")
found["expanded"] = [float((model(**b).logits - e).detach().abs().max()) for b, e in zip(batches, expected)]
found["parameters"] = model.num_parameters()
found["words"] = len(AutoTokenizer.from_pretrained("{folder}/expanded"))
print(json.dumps(found))
"""


def typed_batch(rows: int, length: int) -> dict[str, torch.Tensor]:
    """Rows of two texts, the second longer from row to row."""
    batch = tiny_batch(rows, length, labels=False)
    types = torch.arange(length) + torch.arange(rows)[:, None] >= length - 1
    return {**batch, "token_type_ids": types.long()}


@pytest.fixture
def small() -> Any:
    # Weights of some size, so that every input shows in the logits.
    return apply(tiny_model("bert", id2label={0: "bad", 1: "good"}, initializer_range=0.3), TICKET).eval()


def test_layers_of_the_ticket_are_those_of_the_tiny_model() -> None:
    assert len(TICKET.heads) == LAYERS


def test_torch_and_expanded_in_a_fresh_process_without_earlybert(
    small: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    for number, (rows, length) in enumerate(((4, 12), (1, 2), (9, 40))):
        batch = typed_batch(rows, length)
        with torch.no_grad():
            save_file({**batch, "logits": small(**batch).logits}, tmp_path / str(number))
    earlybert.save(small, tmp_path / "cut", tokenizer=tiny_tokenizer)
    for form in ("torch", "expanded"):
        assert main(["export", str(tmp_path / "cut"), "--to", form, "--output", str(tmp_path / form)]) == 0
    program = FRESH.format(folder=tmp_path.as_posix())
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["alone"]
    assert max(found["torch"]) <= 1e-5
    assert max(found["expanded"]) <= 1e-5
    assert found["parameters"] == tiny_model("bert").num_parameters() > small.num_parameters()
    assert found["words"] == len(tiny_tokenizer)
    config = json.loads((tmp_path / "expanded" / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert not {"earlybert", "auto_map"} & set(config)
    assert {file.name for file in (tmp_path / "torch").iterdir()} >= {"model.pt2", "config.json", "tokenizer.json"}


@pytest.mark.slow
def test_onnx_in_onnxruntime(small: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    file = export.onnx(small, tmp_path / "onnx", tokenizer=tiny_tokenizer)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [each.name for each in session.get_outputs()] == ["logits"]
    assert all(isinstance(size, str) for each in session.get_inputs() for size in each.shape)  # named, so any
    for rows, length in ((4, 12), (1, 2), (17, 33)):
        batch = typed_batch(rows, length)
        (found,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
        with torch.no_grad():
            assert np.abs(found - small(**batch).logits.numpy()).max() <= 1e-4
    assert (tmp_path / "onnx" / "tokenizer.json").exists()
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["id2label"]["1"] == "good"


def test_the_types_of_a_pair_change_what_a_graph_puts_out(small: Any, tmp_path: Path) -> None:
    program = torch.export.load(export.program(small, tmp_path / "torch")).module()
    batch = typed_batch(4, 12)
    with torch.no_grad():
        found = program(**batch)[0]
        torch.testing.assert_close(found, small(**batch).logits, atol=1e-5, rtol=0)
        assert (found - small(**tiny_batch(labels=False)).logits).abs().max() > 1e-2


def test_the_graph_of_a_pair_takes_what_the_exported_tokenizer_gives(
    small: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    names = ["input_ids", "token_type_ids", "attention_mask"]
    backend = tiny_tokenizer.backend_tokenizer
    typed = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", model_input_names=names)
    file = export.program(small, tmp_path / "torch", tokenizer=typed)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "torch")
    pair = tokenizer(["a good film", "a film"], ["it was bad", "the night was very cold"], padding=True)
    batch = {name: torch.tensor(value) for name, value in pair.items()}
    assert batch["token_type_ids"].any()
    with torch.no_grad():
        found = torch.export.load(file).module()(**batch)[0]
        torch.testing.assert_close(found, small(**batch).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "types", "takes"), [("bert", 2, 3), ("bert", 1, 2), ("distilbert", None, 2)])
def test_a_graph_takes_types_where_the_model_has_more_than_one(family: str, types: int | None, takes: int) -> None:
    model = tiny_model(family, **({"type_vocab_size": types} if types else {}), pad_token_id=0)
    with graphs.graph(model) as ready:
        batches = ready.batches
    assert all(list(batch) == ["input_ids", "attention_mask", "token_type_ids"][:takes] for batch in batches)
    if takes == 3:
        assert all(set(row.tolist()) == {0, 1} for batch in batches for row in batch["token_type_ids"])


def test_mixed_precision_of_a_trainer_is_not_exported(tmp_path: Path) -> None:
    """`accelerate` leaves a forward on the model that computes in bf16: what is written is fp32 all the same."""
    model = AutoModelForTokenClassification.from_pretrained(demo.model_path(), num_labels=3)
    AcceleratorState._reset_state(True)  # one process has one precision
    try:
        model = Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    finally:
        AcceleratorState._reset_state(True)
    scores = random_ticket.scores(of(model), 0)
    small = apply(model, draw(scores, heads=4, neurons=0.4))  # the check of the cut is in fp32, too
    mixed = vars(small)["forward"]
    written = torch.export.load(export.program(small, tmp_path / "torch"))
    assert "bfloat16" not in str(written)
    assert vars(small)["forward"] is mixed
    export.expanded(small, tmp_path / "expanded")


def test_an_export_leaves_cache_and_generation_as_they_were(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(
        GPT2Config(n_layer=LAYERS, n_head=HEADS, n_embd=32, n_inner=NEURONS, vocab_size=VOCABULARY, pad_token_id=0)
    )
    model.generation_config.max_new_tokens = 7
    small = apply(model, replace(TICKET, model_type="gpt2"))
    assert small.config.use_cache
    with graphs.graph(small):
        assert not small.config.use_cache
    assert small.config.use_cache
    assert export.expand(small).generation_config.max_new_tokens == 7


def test_flash_attention_gives_way_to_one_that_takes_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels take half precision alone; a cut is checked, and a graph traced, in fp32."""

    def kernel(module: Any, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if query.dtype is torch.float32:
            raise RuntimeError("only support fp16 and bf16 data type")
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("half_alone", kernel)
    model = tiny_model(pad_token_id=0, attn_implementation="sdpa")
    model.config._attn_implementation = "half_alone"
    small = apply(model, TICKET)
    assert small.config._attn_implementation == "half_alone"
    with graphs.graph(small) as ready:
        assert ready.expected
    assert small.config._attn_implementation == "half_alone"
    export.expand(small)


def test_the_encoder_of_a_t5_alone(tmp_path: Path) -> None:
    """One with a decoder is refused; this is what is left of it where only states are wanted."""
    sizes = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": NEURONS,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "vocab_size": VOCABULARY,
    }
    torch.manual_seed(0)
    whole = T5EncoderModel(T5Config(**sizes)).eval()
    cut = apply(whole, replace(TICKET, model_type="t5")).eval()
    program = torch.export.load(export.program(cut, tmp_path / "torch")).module()
    for rows, length in ((4, 12), (1, 2), (9, 40)):
        batch = tiny_batch(rows, length, labels=False)
        with torch.no_grad():
            torch.testing.assert_close(program(**batch)[0], cut(**batch)[0], atol=1e-5, rtol=0)


def test_a_whole_model_has_nothing_to_expand(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="not cut, so there is nothing to expand"):
        export.expanded(tiny_model("bert"), tmp_path / "out")


def test_an_expanded_model_can_be_cut_again_to_the_same(small: Any) -> None:
    again = apply(export.expand(small), TICKET)
    for name, value in small.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_what_differs_is_refused_and_not_written(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(
        self: graphs.OfText, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> Any:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return (found.logits + 1e-2,)

    monkeypatch.setattr(graphs.OfTypedText, "forward", wrong)
    with pytest.raises(Refused, match=r"differs from the model by .+ in logits on a batch of 3x11"):
        export.program(small, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_refusals(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "d_model": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 20}
    bart = BartForSequenceClassification(AutoConfig.for_model("bart", **sizes, **heads))
    with pytest.raises(Refused, match="BartForSequenceClassification has a decoder"):
        export.program(bart, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(Refused, match="full exists; choose another folder"):
        export.expanded(small, tmp_path / "full")
    with pytest.raises(Refused) as refusal:
        export.expanded(small, "/proc/earlybert/out")
    said = (
        "/proc/earlybert/out could not be written (No such file or directory); choose another folder, and export again."
    )
    assert str(refusal.value) == said
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    with pytest.raises(
        Refused, match=r"needs onnx, onnxruntime, onnxscript; install them with pip install 'earlybert\[export\]'"
    ):
        export.onnx(small, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["full"]


def test_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["export", str(tmp_path), "--to", "onnx"]) == 2
    assert "say what to export" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), "--to", "torch", "--output", str(tmp_path / "out")]) == 2
    assert "is not a model folder" in capsys.readouterr().err
