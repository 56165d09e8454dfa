"""What a family's table has to say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Where the models of one family keep their heads and neurons.

    `layers` is a dotted name inside the base model; every other name is relative to one layer.
    Adding a family is one such table, listed in `anatomy.FAMILIES`.
    """

    model_types: tuple[str, ...]
    """`config.model_type` of the models this table is for."""
    layers: str
    """The `nn.ModuleList` of transformer layers."""
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
    head_size: str = "attention_head_size"
    """Attribute of `attention` with the size of one head. It never changes with a cut."""
    head_count: tuple[str, ...] = ()
    """Attributes of `attention` that hold the number of heads, updated after a cut where present."""
    head_width: tuple[str, ...] = ()
    """Attributes of `attention` that hold heads x head size, updated after a cut where present."""
