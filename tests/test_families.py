"""What every family has to pass. Adding one is a table in `anatomy` and a line here."""

from __future__ import annotations

import copy
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, PreTrainedModel

import earlybert
from earlybert import Gates, Refused, Ticket, apply, rebind
from earlybert.anatomy import SUPPORTED, of
from earlybert.cost import count
from earlybert.ticket.surgery import mask
from earlybert.train.fast import RaggedStep
from earlybert.train.step import EagerStep

HEADS, NEURONS, VOCABULARY, LENGTH = 4, 64, 120, 12
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": HEADS, "intermediate_size": NEURONS}
GROUPED = {**SIZES, "num_attention_heads": 2 * HEADS, "num_key_value_heads": HEADS, "head_dim": 6}
BART = {
    "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": HEADS, "encoder_ffn_dim": NEURONS,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "eos_token_id": 2,
}  # fmt: skip
T5 = {"d_model": 32, "num_layers": 3, "num_decoder_layers": 1, "num_heads": HEADS, "d_kv": 6, "d_ff": NEURONS}

FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "electra": {**SIZES, "embedding_size": 16},
    "distilbert": {"dim": 32, "n_heads": HEADS, "n_layers": 3, "hidden_dim": NEURONS},
    "mpnet": SIZES,
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2/v3": {
        **SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True,
        "position_buckets": 8, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3,
    },
    "albert": {**SIZES, "embedding_size": 16},
    "albert/groups": {**SIZES, "embedding_size": 16, "num_hidden_layers": 6, "num_hidden_groups": 3},
    "modernbert": {**SIZES, "local_attention": 4, "global_attn_every_n_layers": 2},
    "modernbert/bias": {**SIZES, "attention_bias": True, "mlp_bias": True, "norm_bias": True},
    "vit": {**SIZES, "image_size": 12, "patch_size": 4, "encoder_stride": 4},
    "vit/no bias": {**SIZES, "image_size": 12, "patch_size": 4, "encoder_stride": 4, "qkv_bias": False},
    "bart": BART,
    "t5": T5,
    "t5/gated": {**T5, "feed_forward_proj": "gated-gelu"},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": HEADS, "n_inner": NEURONS, "n_positions": 64},
    "llama": {**GROUPED, "attention_bias": True},
    "mistral": GROUPED,
    "qwen2": SIZES,
    "qwen3": GROUPED,
}  # fmt: skip
"""Sizes of a tiny model of each family, by model type; what follows a slash tells variants apart."""
TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")
DECODERS = {"BartForCausalLM", "BartDecoder", "BertLMHeadModel"}
"""What the families' modules hold besides models with an encoder."""
FAST = {"bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "albert/groups"}
"""Those that can run without padding."""
NEW = not transformers.__version__.startswith("4.")


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def config_of(name: str, **changes: Any) -> Any:
    model_type = name.partition("/")[0]
    text = {} if model_type == "vit" else TEXT
    # Dropout would make two runs of one model differ; finite differences and fast steps need it off.
    config = AutoConfig.for_model(model_type, **{**text, **FAMILIES[name], **changes})
    for key in vars(config):
        if "dropout" in key or "drop" in key.split("_") or key.endswith("pdrop"):
            setattr(config, key, 0.0)
    return config


def kinds(name: str) -> dict[str, type[PreTrainedModel]]:
    """Every model that `transformers` has for this configuration: bare, and with each task head."""
    config = config_of(name)
    found: dict[str, type[PreTrainedModel]] = {}
    for kind in map(lambda name: getattr(transformers, name, None), dir(sys.modules[type(config).__module__.replace("configuration", "modeling")])):
        if inspect.isclass(kind) and issubclass(kind, PreTrainedModel) and not kind.__name__.endswith(("PreTrainedModel", "PretrainedModel")):
            found[kind.__name__] = kind
    return found


def build(name: str, kind: str | None = None, attention: str = "eager", **changes: Any) -> Any:
    """A tiny model, the classifier of the family unless told otherwise."""
    torch.manual_seed(0)
    config = config_of(name, **changes)
    config._attn_implementation = attention
    auto = transformers.AutoModelForImageClassification if "image_size" in FAMILIES[name] else transformers.AutoModelForSequenceClassification
    model: Any = (getattr(transformers, kind) if kind else auto._model_mapping[type(config)])._from_config(config, attn_implementation=attention)
    # Biases and norms start at 0 and 1, and linears tiny: values with some size make every comparison mean something.
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def inputs_of(model: Any, rows: int = 4, length: int = LENGTH, labels: bool = False) -> dict[str, Tensor]:
    """What a person would pass: padded rows, or images; a decoder gets something to start from."""
    kind, config = type(model).__name__, model.config
    random = torch.Generator().manual_seed(1)
    if hasattr(config, "image_size"):
        batch = {"pixel_values": torch.randn(rows, 3, config.image_size, config.image_size, generator=random)}
    else:
        shape = (rows, 2, length) if kind.endswith(("MultipleChoice", "DoubleHeadsModel")) else (rows, length)
        batch = {"input_ids": torch.randint(5, VOCABULARY, shape, generator=random)}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["input_ids"][..., -1] = 2  # BART's classifier reads the last of these
        if length > 4:
            batch["attention_mask"][0, ..., length // 2 :] = 0
            batch["input_ids"][0, ..., length // 2 :] = 1
            batch["input_ids"][0, ..., length // 2 - 1] = 2
    if "decoder_input_ids" in inspect.signature(model.forward).parameters and not kind.endswith("Classification"):
        batch["decoder_input_ids"] = batch["input_ids"][:, :5]
    if labels:
        batch["labels"] = torch.randint(0, 2, (rows,), generator=random)
    return batch


def uneven(model: Any) -> Ticket:
    """Other numbers of heads and neurons in every layer, and not the first ones."""
    anatomy, random = of(model), torch.Generator().manual_seed(0)
    draws = [
        [tuple(sorted(torch.randperm(size, generator=random)[: counts[i % 3]].tolist())) for i in range(len(anatomy.layers))]
        for size, counts in ((HEADS, (1, 3, 4)), (NEURONS, (7, 40, 64)))
    ]
    return Ticket(tuple(draws[0]), tuple(draws[1]), anatomy.model_type, HEADS, NEURONS)


def masked(model: Any, ticket: Ticket) -> Any:
    reference = copy.deepcopy(model)
    mask(reference, ticket)
    return reference


def tensors(output: Any) -> dict[str, Tensor]:
    return {key: value for key, value in output.items() if isinstance(value, Tensor)}


def test_every_supported_model_is_tested() -> None:
    assert {name.partition("/")[0] for name in FAMILIES} == set(SUPPORTED)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_cut_equals_masked_with_every_head(name: str, attention: str) -> None:
    tried = []
    for kind, its_class in kinds(name).items():
        if kind in DECODERS or (attention == "sdpa" and not its_class._supports_sdpa):
            continue
        model = build(name, kind, attention)
        batch, ticket = inputs_of(model), uneven(model)
        small = apply(model, ticket)
        assert type(small) is type(model)
        with torch.no_grad():
            expected = tensors(masked(model, ticket)(**batch))
            whole = tensors(model(**batch))
            for key, got in tensors(small(**batch)).items():
                torch.testing.assert_close(got, expected[key], rtol=1e-5, atol=1e-5, msg=lambda m: f"{kind} {key}: {m}")
            assert any((whole[key] - expected[key]).abs().max() > 1e-2 for key in expected), kind
        tried.append(kind)
    if attention == "eager":
        print(tried)
        assert len(tried) >= 3
