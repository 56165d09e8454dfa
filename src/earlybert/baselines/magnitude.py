"""Weight magnitude: a unit is worth the norm of its own weights."""

from __future__ import annotations

from torch import Tensor, nn

from ..anatomy import of
from ..ticket import Scores


def scores(model: nn.Module, seed: int = 0) -> Scores:
    """Frobenius norm of all the weights that would go with a head (q, k, v, W_O) or a neuron (W_1, W_2).

    Args:
        model: A supported, uncut model.
        seed: Breaks ties when drawing.
    """
    anatomy = of(model)
    heads: list[Tensor] = []
    neurons: list[Tensor] = []
    for layer in anatomy.layers:
        rows = sum(_squares(model, name, dim=1) for name in (layer.query, layer.key, layer.value))
        features = rows + _squares(model, layer.output, dim=0)  # [heads * head size]
        heads.append(features.view(layer.heads, anatomy.head_size).sum(1).sqrt())
        neurons.append((_squares(model, layer.up, dim=1) + _squares(model, layer.down, dim=0)).sqrt())
    return Scores(tuple(heads), tuple(neurons), anatomy.model_type, source="weight magnitude", seed=seed)


def _squares(model: nn.Module, name: str, dim: int) -> Tensor:
    return model.get_submodule(name).get_parameter("weight").detach().float().square().sum(dim)
