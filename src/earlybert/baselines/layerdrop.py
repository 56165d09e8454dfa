"""LayerDrop (Fan et al. 2020), both readings: layers removed before training, or dropped while training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from ..anatomy import Refused, of
from ..cost import Cost
from ..train.loop import Done

SHARE = 1 / 3
"""Share of the layers that goes (Sec. 4.1); also the rate at which layers are dropped in training."""


def kept_layers(layers: int, share: float = SHARE) -> list[int]:
    """Which layers stay: evenly spread ones go ("every other", Fan et al. Sec. 3.3), the first and last stay.

    12 layers keep 8, 24 keep 16, 6 keep 4.
    """
    gone = int(layers * share + 0.5)
    removed = {int((number + 0.5) * layers / gone) for number in range(gone)}
    return [layer for layer in range(layers) if layer not in removed]


def remove_layers(model: nn.Module, kept: Sequence[int]) -> None:
    """Leave these layers alone in the model, in place. It is then a stock model of fewer layers.

    Raises:
        Refused: As `refuse_unremovable`.
    """
    refuse_unremovable(model, kept)
    stack = _stack(model)
    config: Any = model.config
    layers = [stack[index] for index in kept]
    del stack[:]
    stack.extend(layers)
    part: Any
    for number, layer in enumerate(layers):
        for part in layer.modules():
            if getattr(part, "layer_idx", None) is not None:
                part.layer_idx = number  # its place in a cache
    if types := getattr(config, "layer_types", None):
        config.layer_types = [types[index] for index in kept]
    config.num_hidden_layers = len(layers)  # families that call it otherwise map this name
    if hasattr(config, "encoder_layers"):  # but BART, which has both
        config.encoder_layers = len(layers)


def refuse_unremovable(model: nn.Module, kept: Sequence[int] | None = None) -> None:
    """Before any compute: what `remove_layers` cannot do.

    Args:
        model: A supported model.
        kept: The layers that stay; those of `kept_layers` when None.

    Raises:
        Refused: The layers are not a plain list, or what a layer computes depends on its number in a way that the
            configuration of fewer layers cannot say.
    """
    config: Any = model.config
    kept = kept_layers(len(_stack(model))) if kept is None else kept
    every = None if getattr(config, "layer_types", None) else getattr(config, "global_attn_every_n_layers", None)
    moved = every is not None and any((new % every == 0) != (old % every == 0) for new, old in enumerate(kept))
    if moved or getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise Refused(
            f"what a layer of {type(model).__name__} computes depends on its number; LayerDrop cannot take one out."
        )


class LayerDrop:
    """Observer that leaves out each layer with probability `rate`, drawn anew for every step.

    Which layers a step leaves out depends on the seed and its number alone, so a resumed run goes on
    as it would have. Layers are skipped for real: a step costs what is left.

    Args:
        model: A supported model, in place.
        cost: Of the model with all layers.
        rate: Probability of leaving a layer out.
        seed: Of the draw.
        first: Optimizer steps done before.

    Raises:
        Refused: The layers are not a plain list, or kinds of layers are told by their place in it.
    """

    def __init__(self, model: nn.Module, cost: Cost, *, rate: float = SHARE, seed: int, first: int = 0) -> None:
        self._stack = _stack(model)
        refuse_undroppable(model)
        self._layers = len(self._stack)
        self._cost = cost
        self._rate = rate
        self._seed = seed
        kind = type(self._stack)
        self._skipping: Any = type("Skipping" + kind.__name__, (kind,), {"__iter__": lambda stack: self._of(stack)})
        self._stack.__class__ = self._skipping
        self.present: list[int] = []
        self._draw(first)

    def __call__(self, done: Done) -> bool:
        """Draw the layers of the next step."""
        self._draw(done.step)
        return False

    def step(self, shapes: Sequence[tuple[int, int]]) -> int:
        """FLOPs of the step in hand, for a log: of the layers present (the small task head in proportion)."""
        return self._cost.step(shapes) * len(self.present) // self._layers

    def stop(self) -> None:
        """All layers are present again."""
        self._stack.__class__ = self._skipping.__base__

    def _draw(self, step: int) -> None:
        drawn = np.random.default_rng([self._seed, step]).random(self._layers)
        # never none at all: a step without layers would train the embeddings through the head alone
        self.present = [layer for layer in range(self._layers) if drawn[layer] >= self._rate] or [int(drawn.argmax())]

    def _of(self, stack: nn.ModuleList) -> Iterator[nn.Module]:
        modules = list(stack._modules.values())
        # an evaluation between two steps is of the whole model; a slice of the list would not know of it
        return iter([modules[layer] for layer in self.present] if self._stack.training else modules)


def refuse_undroppable(model: nn.Module) -> None:
    """Before any compute: models whose layers cannot be left out of a step.

    Raises:
        Refused: As said.
    """
    config: Any = model.config
    if len(set(getattr(config, "layer_types", None) or ())) > 1 and not hasattr(_stack(model)[0], "attention_type"):
        raise Refused(
            f"{type(model).__name__} tells what a layer attends to by its place; LayerDrop cannot leave one out."
        )


def _stack(model: nn.Module) -> nn.ModuleList:
    first = of(model).layers[0].query
    # "bert.encoder.layer.0.attention..." is in "bert.encoder.layer"
    parent = model.get_submodule(first.split(".0.", 1)[0])
    config: Any = model.config
    shared = hasattr(config, "num_hidden_groups")  # ALBERT picks its layers, and does not go through them
    if shared or not isinstance(parent, nn.ModuleList) or len(parent) != config.num_hidden_layers:
        raise Refused(f"the layers of {type(model).__name__} are not a plain list; LayerDrop cannot take one out.")
    return parent
