"""Weight magnitude: a unit is worth the norm of its own weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..anatomy import Blocks, of
from ..anatomy.linear import linear_at, matrix
from ..ticket import Scores


def scores(model: nn.Module, seed: int = 0) -> Scores:
    """Frobenius norm of all the weights that would go with a head (q, k, v, W_O) or a neuron (W_1, W_2).

    Args:
        model: A supported model, whole or cut before.
        seed: Breaks ties when drawing.
    """
    anatomy = of(model)
    heads: list[Tensor] = []
    neurons: list[Tensor] = []
    for layer in anatomy.layers:
        features = _squares(model, layer.output).sum(0)  # [heads * head size]
        into = features.view(layer.heads, anatomy.head_size).sum(1)
        heads.append((_outputs(model, layer.from_heads, layer.heads) + into).sqrt())
        neurons.append((_outputs(model, layer.from_neurons, layer.neurons) + _squares(model, layer.down).sum(0)).sqrt())
    return Scores.of_units(anatomy, heads, neurons, source="weight magnitude", seed=seed)


def _outputs(model: nn.Module, blocks: Blocks, units: int) -> Tensor:
    """Squared weights that put out each unit, `[units]`; a linear named twice holds its blocks one after another."""
    total = torch.zeros(units, device=next(model.parameters()).device)
    begins: dict[str, int] = {}
    for name, features in blocks:
        begin = begins.get(name, 0)
        begins[name] = begin + units * features
        total += _squares(model, name).sum(1)[begin : begins[name]].view(units, features).sum(1)
    return total


def _squares(model: nn.Module, name: str) -> Tensor:
    """`[outputs, inputs]`."""
    return matrix(linear_at(model, name)).detach().float().square()
