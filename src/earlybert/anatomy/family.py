"""What a family's table has to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .inputs import Inputs, text

UNBOUNDED = 1 << 16
"""Tokens of a row of models that do not say how many positions they have."""
Heads = tuple[int, ...]
Settle = Callable[[Sequence[nn.Module], Sequence[Heads]], None]
"""Takes the attention modules, one a layer, and the heads that each keeps."""


@dataclass(frozen=True)
class Family:
    """Where the models of one family keep their heads and neurons.

    `layers` is a dotted name inside the base model; every other name is relative to one layer. Parts
    that name the same linear are stacked in it, in the order query, key, value, or gate, up.
    Adding a family is one such table, listed in `anatomy.FAMILIES`; a model type may have several,
    one for each layout that versions of `transformers` gave it, and the first that fits is used.
    """

    model_types: tuple[str, ...]
    """`config.model_type` of the models this table is for."""
    layers: str
    """The `nn.ModuleList` of transformer layers; `*` stands for all children of a list of lists."""
    query: str
    key: str
    value: str
    output: str
    """The attention output projection, W_O of Eq. 1; its input is the concatenated heads."""
    up: str
    """The first feed-forward linear, W_1 of Eq. 3."""
    down: str
    """The second feed-forward linear, W_2 of Eq. 3; its input is the intermediate neurons."""
    attention: str
    """The module that remembers how many heads there are."""
    gate: str | None = None
    """The linear whose output multiplies that of `up`, neuron by neuron."""
    more: tuple[str, ...] = ()
    """Further linears that put out one block of features a head, where a model has them."""
    head_size: str = "attention_head_size"
    """Attribute of `attention` with the size of one head. It never changes with a cut."""
    group: str | None = None
    """Attribute of `attention` with the number of query heads that share a key and value head.

    They are cut together: a head of the ticket is then such a group.
    """
    head_count: tuple[str, ...] = ()
    """Attributes of `attention` that hold the number of heads, updated after a cut where present."""
    head_width: tuple[str, ...] = ()
    """Attributes of `attention` that hold heads x head size, updated after a cut where present."""
    settle: Settle | None = None
    """What else has to change after a cut: parameters that layers share and cannot be sliced, say."""
    inputs: Inputs = text
    """Makes a small random batch that these models take."""
    decoder: str | None = None
    """Part of the base model behind the layers that is neither cut, nor run to check a cut, nor counted."""
    position_flops: Callable[[Any], int] | None = None
    """FLOPs a token for products of heads with embedded positions, from a layer's `attention`."""
    after_padding: bool = False
    """Whether positions count from behind the padding id, as RoBERTa's do, and not from 0."""
    padded: str | None = None
    """Why these models cannot run without padding; None where they can be tried."""

    @property
    def only_encodes_text(self) -> bool:
        """Whether these models take text, and nothing of them stays whole and uncounted."""
        return self.inputs is text and self.decoder is None

    def first_position(self, config: Any) -> int:
        """Position of a row's first token."""
        return (config.pad_token_id or 0) + 1 if self.after_padding else 0

    def longest(self, config: Any) -> int:
        """Most tokens of a row: what there are positions for."""
        return int(getattr(config, "max_position_embeddings", None) or UNBOUNDED) - self.first_position(config)
