"""Unstructured lottery tickets: iterative magnitude pruning with rewinding (Chen et al. 2020b).

Train, remove the tenth of the remaining weights with the least magnitude, start again from theta_0
under the new masks. Weights are set to zero, not taken out: a step of the pruned model costs what a dense one costs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from ..anatomy import of

RATE = 0.1
"""Share of the remaining weights that goes after each round but the last."""
ROUNDS = 6
"""Trainings, the one of the final ticket included. The paper's 40 % on SQuAD (Sec. 4.4): 1 - 0.9^5 = 0.41."""


def densities(rounds: int = ROUNDS, rate: float = RATE) -> list[float]:
    """Share of the weights that is there in each training, the first one being dense."""
    return [(1 - rate) ** number for number in range(rounds)]


def cost(rounds: int = ROUNDS, rate: float = RATE) -> dict[str, float]:
    """What IMP costs, in dense trainings: by the clock, and by FLOPs if zeros cost nothing (Sec. 4.4: 6x, 4.69x)."""
    return {"trainings": float(rounds), "dense_flops_if_zeros_were_free": sum(densities(rounds, rate))}


def shrink(model: nn.Module, rate: float = RATE) -> None:
    """Remove the share `rate` of what remains, least magnitude first over all encoder matrices together."""
    # The product with the mask dates from the last forward pass, before the last update: the weights themselves count.
    present = {(module, name): module.get_parameter(f"{name}_orig").detach() for module, name in prunable(model)}
    prune.global_unstructured(prunable(model), prune.L1Unstructured, importance_scores=present, amount=rate)


def masked(model: nn.Module) -> None:
    """Put full masks on, so that a model can take saved ones."""
    for module, name in prunable(model):
        prune.identity(module, name)


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks by name, uint8."""
    return {name: mask.to(torch.uint8) for name, mask in model.named_buffers() if name.endswith("weight_mask")}


def set_masks(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Put saved masks in place of those that are on."""
    buffers = dict(model.named_buffers())
    for name, mask in saved.items():
        buffers[name].copy_(mask)


def harden(model: nn.Module) -> None:
    """Make the zeros part of the weights; an ordinary model again."""
    for module, name in prunable(model):
        prune.remove(module, name)


def sparsity(model: nn.Module) -> float:
    """Share of the weights that can be pruned that is gone, by the masks that are on."""
    kept = masks(model).values()
    return 1 - sum(int(mask.sum()) for mask in kept) / sum(mask.numel() for mask in kept)


def prunable(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The weight matrices of all encoder layers, as in Chen et al.; embeddings and the task head stay."""
    names = [name for layer in of(model).layers for name in layer.linears]
    return [(model.get_submodule(name), "weight") for name in names]
