"""A tiny model of every family: its sizes, with every head that it has, and what a person would pass to it."""

from __future__ import annotations

import copy
import importlib
import inspect
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from earlybert import Ticket
from earlybert.anatomy import of
from earlybert.ticket.surgery import mask

HEADS, NEURONS, VOCABULARY, LENGTH = 4, 64, 120, 12
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": HEADS, "intermediate_size": NEURONS}
GROUPED = {**SIZES, "num_attention_heads": 2 * HEADS, "num_key_value_heads": HEADS, "head_dim": 6}
BART = {
    "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": HEADS, "encoder_ffn_dim": NEURONS,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "num_labels": 3,
}  # fmt: skip
T5 = {
    "d_model": 32,
    "num_layers": 3,
    "num_decoder_layers": 1,
    "num_heads": HEADS,
    "d_kv": 6,
    "d_ff": NEURONS,
    "decoder_start_token_id": 0,
}

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
    "modernbert": {**SIZES, "local_attention": 14, "global_attn_every_n_layers": 2},
    "modernbert/bias": {**SIZES, "attention_bias": True, "mlp_bias": True, "norm_bias": True},
    "vit": {**SIZES, "image_size": 12, "patch_size": 4, "encoder_stride": 4},
    "vit/no bias": {**SIZES, "image_size": 12, "patch_size": 4, "encoder_stride": 4, "qkv_bias": False},
    "bart": BART,
    "t5": {**T5, "feed_forward_proj": "gelu"},  # its own ReLU has kinks that finite differences trip over
    "t5/gated": {**T5, "feed_forward_proj": "gated-gelu"},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": HEADS, "n_inner": NEURONS, "n_positions": 64},
    "llama": {**GROUPED, "attention_bias": True},
    "mistral": GROUPED,
    "qwen2": {**SIZES, "num_key_value_heads": HEADS},
    "qwen3": GROUPED,
}  # fmt: skip
"""Sizes of a tiny model of each family, by model type; what follows a slash tells variants apart."""
TEXT = {
    "vocab_size": VOCABULARY, "max_position_embeddings": 64, "num_labels": 2, "use_cache": False,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")
DECODERS = {"BartForCausalLM"}
"""Without an encoder."""
FAST = {"bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "albert/groups"}
"""Those that can run without padding."""
DECODE = {"bart", "t5", "t5/gated"}
"""Those with a decoder: its steps depend on the data, so that a graph is for one number of rows and tokens only."""
NEW = not transformers.__version__.startswith("4.")


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
    module = importlib.import_module(type(config_of(name)).__module__.replace("configuration", "modeling"))
    public = {kind: getattr(transformers, kind) for kind in vars(module) if hasattr(transformers, kind)}
    return {
        kind: its_class
        for kind, its_class in public.items()
        if inspect.isclass(its_class)
        and issubclass(its_class, PreTrainedModel)
        and "pretrained" not in kind.lower()
        and kind not in DECODERS
    }


def build(name: str, kind: str | None = None, attention: str = "eager", **changes: Any) -> Any:
    """A tiny model, the classifier of the family unless told otherwise."""
    torch.manual_seed(0)
    config = config_of(name, **changes)
    config._attn_implementation = attention
    auto = (
        transformers.AutoModelForImageClassification
        if "image_size" in FAMILIES[name]
        else transformers.AutoModelForSequenceClassification
    )
    model: Any = (getattr(transformers, kind) if kind else auto._model_mapping[type(config)])._from_config(
        config, attn_implementation=attention
    )
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
        batch["decoder_input_ids"] = batch["input_ids"][:, :5].contiguous()
    if labels:
        batch["labels"] = torch.randint(0, 2, (rows,), generator=random)
    return batch


def uneven(model: Any) -> Ticket:
    """Other numbers of heads and neurons in every layer, and not the first ones."""
    layers, random = len(of(model).layers), torch.Generator().manual_seed(0)

    def kept(size: int, counts: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        orders = [torch.randperm(size, generator=random).tolist() for _ in range(layers)]
        return tuple(tuple(sorted(order[: counts[number % 3]])) for number, order in enumerate(orders))

    heads, neurons = kept(HEADS, (1, 3, 4)), kept(NEURONS, (7, 40, 64))
    return Ticket(heads, neurons, model.config.model_type, HEADS, NEURONS)


def masked(model: Any, ticket: Ticket) -> Any:
    reference = copy.deepcopy(model)
    mask(reference, ticket)
    return reference


def tensors(output: Any) -> dict[str, Tensor]:
    return {key: value for key, value in output.items() if isinstance(value, Tensor)}
