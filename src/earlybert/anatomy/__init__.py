"""Where each model family keeps its attention heads and feed-forward neurons.

The only place that knows a family. `of(model)` reads a live model, cut or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import nn

from . import linear
from .albert import ALBERT
from .bart import BART
from .bert import BERT, ROBERTA
from .deberta import DEBERTA
from .distilbert import DISTILBERT
from .family import Family
from .gpt2 import GPT2
from .left import Left, left_of, places
from .llama import LLAMA
from .modernbert import MODERNBERT
from .mpnet import MPNET
from .refused import Refused, first_line
from .t5 import T5, T5_GATED
from .vit import VIT, VIT_4

__all__ = [
    "FAMILIES",
    "SUPPORTED",
    "Anatomy",
    "Blocks",
    "Family",
    "Layer",
    "Left",
    "Refused",
    "base_prefix",
    "family_of",
    "first_line",
    "of",
    "places",
]

FAMILIES = (
    BERT, ROBERTA, DISTILBERT, MPNET, DEBERTA, ALBERT, MODERNBERT, VIT, VIT_4, BART, T5, T5_GATED, GPT2, LLAMA,
)  # fmt: skip
SUPPORTED = tuple(dict.fromkeys(name for family in FAMILIES for name in family.model_types))

Blocks = tuple[tuple[str, int], ...]
"""Names of linears with the features that one unit, a head or a neuron, has in each."""


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
    """Heads in this layer; with grouped queries, groups: key and value heads with their query heads."""
    neurons: int
    """Intermediate neurons in this layer."""
    from_heads: Blocks
    """The linears that put out the heads. One that is named more than once holds its blocks stacked."""
    from_neurons: Blocks
    """The linears that put out the neurons, likewise."""

    @property
    def linears(self) -> tuple[str, ...]:
        """Every linear that a cut makes smaller, once."""
        return tuple(dict.fromkeys([*dict(self.from_heads), self.output, *dict(self.from_neurons), self.down]))


@dataclass(frozen=True)
class Anatomy:
    """A model's layers, in order, and what a cut has to keep in step."""

    family: Family
    model_type: str
    head_size: int
    """Features a head brings to the output projection; the same in every layer."""
    layers: tuple[Layer, ...]
    """Each layer that is stored, once, however often a forward pass runs it."""
    left: Left
    """Which heads and neurons of the whole model the layers have: all of them, where it was not cut."""
    stack: str
    """The module that runs the layers."""
    core: str
    """The module that a cut concerns: the encoder of an encoder-decoder, else the model itself (`""`)."""
    axes: tuple[int, int]
    """Dimensions of the linears' weights that are outputs and inputs."""
    repeats: bool
    """Whether a forward pass runs a stored layer more than once (ALBERT)."""

    @property
    def head_price(self) -> float:
        """What a head costs, in neurons: its features in all linears, attention scores left out, over a neuron's."""
        layer = self.layers[0]
        head = sum(width for _, width in layer.from_heads) + self.head_size  # W_O
        return head / (sum(width for _, width in layer.from_neurons) + 1)

    @property
    def whole(self) -> bool:
        """Whether nothing was cut."""
        return self.left.known and self.left.all

    @property
    def num_heads(self) -> int:
        """Heads per layer of the whole model."""
        return self.left.num_heads

    @property
    def num_neurons(self) -> int:
        """Intermediate neurons per layer of the whole model."""
        return self.left.num_neurons

    def refuse_unknown(self) -> None:
        """For what has to know the units by their indices in the whole model.

        Raises:
            Refused: The layers are of different sizes, and the configuration does not say what they lack.
        """
        if not self.left.known:
            raise Refused(
                "this model has already been cut, and its configuration holds no ticket of these sizes that says which "
                "heads and neurons are left; take the model that was saved after the cut, or the full model."
            )

    def refuse_repeats(self, what: str) -> None:
        """For what goes layer by layer through a forward pass.

        Args:
            what: Begins the sentence; a plural.

        Raises:
            Refused: A layer runs more than once.
        """
        if self.repeats:
            raise Refused(f"{what} need layers that run once; this {self.model_type} model runs its layers more often.")


def family_of(model_type: str | None) -> Family:
    """The (first) table for a `config.model_type`.

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
        Refused: The model is of another family, quantised, a decoder with cross-attention, wrapped or compiled, carries
            adapters, or has linears to cut that share their weights.
    """
    _refuse_unsafe(model)
    config: Any = model.config
    model_type = getattr(config, "model_type", None)
    missing: Exception | None = None
    for family in (family_of(model_type), *(f for f in FAMILIES if model_type in f.model_types)):
        try:
            found = _read(model, family)
        except (AttributeError, IndexError) as error:
            missing = missing or error
            continue
        _refuse_shared(model, found)
        return found
    raise Refused(
        f"{type(model).__name__} says it is a {model_type!r} but is not laid out like one "
        f"({missing}); use the stock transformers class."
    ) from missing


def _read(model: nn.Module, family: Family) -> Anatomy:
    config: Any = model.config
    prefix = base_prefix(model)
    names = list(_children(model, prefix + family.layers))
    attention = model.get_submodule(f"{names[0]}.{family.attention}")
    head_size = int(getattr(attention, family.head_size))
    group = int(getattr(attention, family.group)) if family.group else 1
    layers = tuple(_layer(model, family, f"{name}.", head_size, group) for name in names)
    outer = (prefix + family.layers).partition(".*")[0]
    stack = outer.rpartition(".")[0]
    decoder = family.decoder and _has(model, prefix + family.decoder)
    return Anatomy(
        family,
        config.model_type,
        head_size * group,
        layers,
        left_of(model, [(layer.heads, layer.neurons) for layer in layers]),
        stack=stack,
        core=stack if decoder else "",
        axes=linear.axes(model.get_submodule(layers[0].output)),
        repeats=getattr(config, "num_hidden_layers", 0) > sum(1 for _ in _children(model, outer)),
    )


def _layer(model: nn.Module, family: Family, name: str, head_size: int, group: int) -> Layer:
    parts = {part: name + getattr(family, part) for part in ("query", "key", "value", "output", "up", "down")}
    gate = name + family.gate if family.gate else None
    more = tuple(name + part for part in family.more if _has(model, name + part))
    width = head_size * group
    layer = Layer(
        **parts,
        attention=name + family.attention,
        heads=linear.inputs(linear.linear_at(model, parts["output"])) // width,
        neurons=linear.inputs(linear.linear_at(model, parts["down"])),
        from_heads=(
            (parts["query"], width),
            (parts["key"], head_size),
            (parts["value"], head_size),
            *((part, width) for part in more),
        ),
        from_neurons=tuple((part, 1) for part in (gate, parts["up"]) if part),
    )
    for blocks, units in ((layer.from_heads, layer.heads), (layer.from_neurons, layer.neurons)):
        for part, same in groupby(sorted(blocks), key=lambda block: block[0]):
            size, expected = linear.outputs(linear.linear_at(model, part)), units * sum(width for _, width in same)
            if size != expected:
                raise Refused(f"{part} puts out {size} features where {expected} were expected; it cannot be cut.")
    return layer


def _children(model: nn.Module, pattern: str) -> Iterator[str]:
    """Full names of the layers in `a.list` or `a.list.*.list`."""
    outer, star, inner = pattern.partition(".*.")
    for name, _ in model.get_submodule(outer).named_children():
        yield from _children(model, f"{outer}.{name}.{inner}") if star else [f"{outer}.{name}"]


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def base_prefix(model: nn.Module) -> str:
    """`"bert."` for a model with a head, `""` for a bare encoder."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and hasattr(model, prefix) else ""


def _refuse_shared(model: nn.Module, anatomy: Anatomy) -> None:
    """Tied embeddings stay tied; linears tied to one another would come apart in a cut."""
    names = [name for layer in anatomy.layers for name in layer.linears]
    owner: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            first = owner.setdefault(id(parameter), name)
            if first != name and (first in names or name in names):
                raise Refused(f"{first} and {name} share their weights; a cut would untie them, so it is refused.")


def _refuse_unsafe(model: nn.Module) -> None:
    kind = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise Refused(
            "the model is wrapped by torch.compile; pass the model itself (model._orig_mod), and compile it afterwards."
        )
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
        raise Refused(
            f"{kind} is configured as the decoder of an encoder-decoder; such models are not supported as such."
        )
