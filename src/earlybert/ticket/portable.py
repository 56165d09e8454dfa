"""How a folder with a cut model is loaded by `transformers` alone.

The text of this module, and the classes of one family behind it, are the `modeling_earlybert.py` of a saved folder. So
nothing of this package is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from torch import nn

MODEL_TYPE = "earlybert"
"""What a saved `config.json` says instead of the stock type, so that nobody takes the folder for a whole model."""


class CutConfig:
    """Goes in front of a stock configuration: in memory the stock type, on disk `MODEL_TYPE`."""

    @classmethod
    def get_config_dict(cls: Any, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The stored values, with the stock type."""
        stock: Any = super()
        values, rest = stock.get_config_dict(*args, **kwargs)
        return {**values, "model_type": cls.model_type} if values.get("model_type") == MODEL_TYPE else values, rest

    def to_json_file(self: Any, json_file_path: Any, use_diff: bool = True) -> None:
        """Write `config.json`."""
        values = {**json.loads(self.to_json_string(use_diff=use_diff)), **self.on_disk()}
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(json.dumps(values, indent=2, sort_keys=True) + "\n")

    def on_disk(self: Any) -> dict[str, Any]:
        """What the file says otherwise than this object."""
        return {"model_type": MODEL_TYPE}


class Cut:
    """Goes in front of a stock model: builds it, makes its linears small, and is the stock class from then on."""

    settle: Any = None
    """What the family needs besides sizes: takes the attention modules, and the heads that each keeps."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock: Any = super()
        with as_stock(config):
            stock.__init__(config, *args, **kwargs)
        shrink(self, config.earlybert["ticket"], config.earlybert["parts"], type(self).settle)
        self.__class__ = stock_class(type(self))


@contextmanager
def as_stock(config: Any) -> Iterator[None]:
    """The configuration as the stock classes know it: some models have the Auto classes build their parts."""
    own, auto_map = type(config), vars(config).pop("auto_map", None)
    object.__setattr__(config, "__class__", stock_class(own))
    yield
    object.__setattr__(config, "__class__", own)
    if auto_map is not None:
        config.auto_map = auto_map


def stock_class(kind: Any) -> Any:
    """The class of `transformers` that a class comes from."""
    return next(parent for parent in kind.__mro__ if parent.__module__.startswith("transformers."))


def shrink(model: Any, ticket: dict[str, Any], parts: dict[str, Any], settle: Any) -> None:
    """Give a whole model, whose weights are still to be loaded, the sizes of a cut one.

    Args:
        model: Any class of the family.
        ticket: `heads` and `neurons`: the indices kept, a list for each layer.
        parts: `layers`: names inside the base model. `head` and `neuron`: linears of a layer with the outputs or inputs
            they have for each one. `attention`: a module of a layer, and `counts`: its attributes with what they hold
            for each head.
        settle: See `Cut.settle`.

    Raises:
        ValueError: This class, or this version of `transformers`, has its layers elsewhere.
    """
    base = getattr(model, model.base_model_prefix, model) if model.base_model_prefix else model
    try:
        layers = [base.get_submodule(name) for name in parts["layers"]]
    except AttributeError as error:
        raise ValueError(f"this {type(model).__name__} is not laid out like the saved one ({error}).") from error
    for layer, heads, neurons in zip(layers, ticket["heads"], ticket["neurons"]):
        for unit, count in (("head", len(heads)), ("neuron", len(neurons))):
            for name, width in parts[unit]["outputs"].items():
                resize(layer, name, outputs=count * width)
            for name, width in parts[unit]["inputs"].items():
                resize(layer, name, inputs=count * width)
        for name, width in parts["counts"].items():
            setattr(layer.get_submodule(parts["attention"]), name, len(heads) * width)
    if settle:
        settle([layer.get_submodule(parts["attention"]) for layer in layers], [tuple(kept) for kept in ticket["heads"]])


def resize(layer: Any, name: str, *, outputs: int | None = None, inputs: int | None = None) -> None:
    """Put a linear of another size in the place of this one."""
    old = layer.get_submodule(name)
    place = {"device": old.weight.device, "dtype": old.weight.dtype}
    if isinstance(old, transformers.pytorch_utils.Conv1D):
        new: Any = type(old)(outputs or old.nf, inputs or old.nx).to(**place)
    else:
        new = nn.Linear(inputs or old.in_features, outputs or old.out_features, old.bias is not None, **place)
    parent, _, child = name.rpartition(".")
    setattr(layer.get_submodule(parent), child, new)
