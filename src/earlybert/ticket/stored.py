"""How a cut model is stored, so that others can load it.

A cut model is of a stock class. Its configuration is of a subclass of the stock one; its `save_pretrained`, which that
of the model calls, names in `config.json` the code that loads the folder, and writes that code.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn
from transformers.models.auto import modeling_auto

from ..anatomy import Anatomy, base_prefix
from . import portable
from .code import CODE, code
from .files import write_atomically
from .ticket import Ticket


class StoredConfig(portable.CutConfig):
    """Goes in front of the stock configuration of a cut model."""

    def save_pretrained(self: Any, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write `config.json`, and beside it the code that it names."""
        stock = portable.stock_class(type(self))
        models = dict.fromkeys(model.__name__ for _, model in auto_classes(stock))
        write_atomically(Path(save_directory) / CODE, code(stock, tuple(models)).encode())
        super().save_pretrained(save_directory, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def on_disk(self: Any) -> dict[str, Any]:
        """The type of cut models, and for each Auto class what to build."""
        module, stock = CODE.removesuffix(".py"), portable.stock_class(type(self))
        models = {auto.__name__: f"{module}.{model.__name__}" for auto, model in auto_classes(stock)}
        return {**super().on_disk(), "auto_map": {"AutoConfig": f"{module}.{type(self).__name__}", **models}}

    def __reduce__(self: Any) -> tuple[Any, ...]:
        # The class is made on the fly, so pickle and deepcopy are told how.
        return _blank, (portable.stock_class(type(self)),), self.__dict__


def remember(model: nn.Module, anatomy: Anatomy, ticket: Ticket) -> None:
    """Note in the configuration of a model that was just cut what was cut.

    Args:
        model: It gets a configuration of its own, as others may share the one it has: a `StoredConfig`, unless it is of
            somebody's own class.
        anatomy: Of the model before the cut.
        ticket: What it keeps.
    """
    shared: Any = model.config
    config = copy.deepcopy(shared)
    config.earlybert = {"ticket": ticket.to_dict(), "parts": parts(model, anatomy)}
    if type(config).__module__.startswith("transformers."):
        object.__setattr__(config, "__class__", config_class(type(config)))
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = config


def parts(model: nn.Module, anatomy: Anatomy) -> dict[str, Any]:
    """The linears and counts that a cut concerns, with what each has for a head or neuron: see `portable.shrink`."""
    first, family = anatomy.layers[0], anatomy.family
    here, prefix = first.attention.removesuffix(family.attention), base_prefix(model)

    def widths(*blocks: tuple[str, int]) -> dict[str, int]:
        names = dict.fromkeys(name for name, _ in blocks)
        return {name.removeprefix(here): sum(width for other, width in blocks if other == name) for name in names}

    counts = {**dict.fromkeys(family.head_count, 1), **dict.fromkeys(family.head_width, anatomy.head_size)}
    attention = model.get_submodule(first.attention)
    return {
        "layers": [
            layer.attention.removesuffix(f".{family.attention}").removeprefix(prefix) for layer in anatomy.layers
        ],
        "attention": family.attention,
        "counts": {name: width for name, width in counts.items() if hasattr(attention, name)},
        "head": {"outputs": widths(*first.from_heads), "inputs": widths((first.output, anatomy.head_size))},
        "neuron": {"outputs": widths(*first.from_neurons), "inputs": widths((first.down, 1))},
    }


@lru_cache
def config_class(stock: Any) -> Any:
    """`StoredConfig` in front of a stock configuration class."""
    if issubclass(stock, StoredConfig):
        return stock
    return type(f"Cut{stock.__name__}", (StoredConfig, stock), {"__module__": __name__, "__doc__": stock.__doc__})


def auto_classes(stock: Any) -> Iterator[tuple[Any, Any]]:
    """Every Auto class that has a model for a stock configuration class, with that model's class."""
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None)
        if name.startswith("AutoModel") and "WithLMHead" not in name and mapping is not None and stock in mapping:
            found = mapping[stock]
            model = found[0] if isinstance(found, (tuple, list)) else found
            if getattr(model, "config_class", None) is stock:  # others only contain such a model
                yield auto, model


def _blank(stock: Any) -> Any:
    kind = config_class(stock)
    return kind.__new__(kind)
