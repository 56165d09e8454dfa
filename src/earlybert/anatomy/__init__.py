"""Where each model family keeps its attention heads and feed-forward neurons.

The only place that knows a family. `of(model)` reads a live model, cut or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .bert import BERT
from .distilbert import DISTILBERT
from .family import Family
from .refused import Refused

__all__ = ["FAMILIES", "SUPPORTED", "Anatomy", "Family", "Layer", "Refused", "family_of", "of"]

FAMILIES = (BERT, DISTILBERT)
SUPPORTED = tuple(name for family in FAMILIES for name in family.model_types)


@dataclass(frozen=True)
class Layer:
    """One transformer layer: the full names of its parts inside the model, and its live sizes."""

    query: str
    key: str
    value: str
    output: str
    up: str
    down: str
    attention: str
    heads: int
    """Heads in this layer."""
    neurons: int
    """Intermediate neurons in this layer."""


@dataclass(frozen=True)
class Anatomy:
    """A model's layers, in order, and what a cut has to keep in step."""

    family: Family
    model_type: str
    head_size: int
    """Features per head; the same in every layer."""
    layers: tuple[Layer, ...]
    whole: bool
    """Whether the model was not cut: all layers are of one size, and the config carries no ticket."""

    @property
    def num_heads(self) -> int:
        """Heads per layer of an uncut model."""
        return self.layers[0].heads

    @property
    def num_neurons(self) -> int:
        """Intermediate neurons per layer of an uncut model."""
        return self.layers[0].neurons


def family_of(model_type: str | None) -> Family:
    """The table for a `config.model_type`.

    Raises:
        Refused: The family is not supported; the sentence lists those that are.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    raise Refused(f"models of type {model_type!r} are not supported; supported are {', '.join(SUPPORTED)}.")


def of(model: nn.Module) -> Anatomy:
    """Read where a Hugging Face model keeps its heads and neurons.

    Args:
        model: A stock `transformers` model of a supported family, with any head or none.

    Raises:
        Refused: The model is of another family, quantised, a decoder, wrapped, or carries adapters.
    """
    _refuse_unsafe(model)
    config: Any = model.config
    family = family_of(getattr(config, "model_type", None))
    prefix = _base_prefix(model)
    layers_name = prefix + family.layers
    try:
        stack = model.get_submodule(layers_name)
        names = [f"{layers_name}.{index}." for index, _ in enumerate(stack.children())]
        head_size = int(getattr(model.get_submodule(names[0] + family.attention), family.head_size))
        layers = tuple(_layer(model, family, name, head_size) for name in names)
    except (AttributeError, IndexError) as error:
        raise Refused(
            f"{type(model).__name__} says it is a {config.model_type!r} but is not laid out like one "
            f"({error}); use the stock transformers class."
        ) from error
    uniform = len({(layer.heads, layer.neurons) for layer in layers}) == 1
    return Anatomy(family, config.model_type, head_size, layers, uniform and not getattr(config, "earlybert", None))


def _layer(model: nn.Module, family: Family, name: str, head_size: int) -> Layer:
    parts = {part: name + getattr(family, part) for part in ("query", "key", "value", "output", "up", "down")}
    for part in parts.values():
        kind = type(model.get_submodule(part))
        if kind is not nn.Linear:
            raise Refused(
                f"{part} is a {kind.__name__}, not a plain nn.Linear; quantised layers and adapters "
                "have to be merged or removed first."
            )
    query, up = model.get_submodule(parts["query"]), model.get_submodule(parts["up"])
    assert isinstance(query, nn.Linear)
    assert isinstance(up, nn.Linear)
    return Layer(
        **parts,
        attention=name + family.attention,
        heads=query.out_features // head_size,
        neurons=up.out_features,
    )


def _base_prefix(model: nn.Module) -> str:
    """`"bert."` for a model with a head, `""` for a bare encoder."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""


def _refuse_unsafe(model: nn.Module) -> None:
    kind = type(model).__name__
    if not hasattr(model, "config") or not hasattr(model, "base_model_prefix"):
        raise Refused(
            f"{kind} is not a plain Hugging Face model; pass the model itself, before it is wrapped "
            f"(supported are {', '.join(SUPPORTED)})."
        )
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False):
        raise Refused(f"{kind} is quantised; load it without quantisation and quantise the cut model.")
    if getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "peft_config"):
        raise Refused(f"{kind} has adapters attached; merge or remove them first.")
    config: Any = model.config
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise Refused(f"{kind} is configured as a decoder; only encoders are supported.")
