"""FLOPs and parameters, counted from the shapes of a live model, cut or not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import of

BACKWARD = 2
"""A backward pass does two matrix products for each one of the forward pass."""
PEAK = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
"""Dense bf16 FLOP/s on the datasheet, by the name that the device gives itself."""


@dataclass(frozen=True)
class Cost:
    """What one forward pass costs, as a function of the batch.

    Matrix products only, a multiply-add as two operations, as `torch.utils.flop_counter` counts.
    """

    per_token: int
    """FLOPs of linear layers that see every token."""
    per_row: int
    """FLOPs of linear layers that see one vector a row (pooler, classifier)."""
    per_pair: int
    """FLOPs for every pair of tokens of a row: attention scores and their weighted sum."""
    parameters: int
    """Parameters of the whole model."""

    def forward(self, shapes: Iterable[tuple[int, int]]) -> int:
        """FLOPs of a forward pass over micro-batches of `(rows, padded length)`."""
        return sum(
            rows * (self.per_row + length * self.per_token + length * length * self.per_pair) for rows, length in shapes
        )

    def step(self, shapes: Iterable[tuple[int, int]]) -> int:
        """FLOPs of a training step, forward and backward."""
        return (1 + BACKWARD) * self.forward(shapes)


def count(model: nn.Module) -> Cost:
    """Read a model's cost off its live shapes, with one tiny forward pass to see which linears act on tokens.

    Raises:
        Refused: The model is not supported.
    """
    anatomy = of(model)
    rows, length = 1, 7
    seen: dict[str, int] = {"token": 0, "row": 0}

    def account(linear: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        assert isinstance(linear, nn.Linear)
        x: Tensor = inputs[0]
        vectors = x.numel() // linear.in_features
        seen["token" if vectors == rows * length else "row"] += 2 * linear.in_features * linear.out_features

    hooks = [m.register_forward_hook(account) for m in model.modules() if isinstance(m, nn.Linear)]
    modes = {module: module.training for module in model.modules()}
    try:
        ids = torch.full((rows, length), 5, device=next(model.parameters()).device)
        with torch.no_grad():
            model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    heads = sum(layer.heads for layer in anatomy.layers)
    return Cost(
        per_token=seen["token"],
        per_row=seen["row"],
        per_pair=4 * heads * anatomy.head_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


@dataclass(frozen=True)
class MaskedCost:
    """What a step of pre-training costs: the encoder on every token, the vocabulary projection on masked places."""

    encoder: Cost
    """With what else sees one vector a row: the head of next-sentence prediction."""
    per_prediction: int
    """FLOPs of the linear layers of the masked-language head, for each place that is predicted."""
    predictions: int
    """Places of a step, those that only fill up included: they are computed all the same."""

    def step(self, shapes: Iterable[tuple[int, int]]) -> int:
        """FLOPs of a training step, forward and backward."""
        return self.encoder.step(shapes) + (1 + BACKWARD) * self.predictions * self.per_prediction


def masked(model: nn.Module, predictions: int) -> MaskedCost:
    """Read a masked-language model's cost off its live shapes.

    Args:
        model: With a head for masked-language modelling, and one for next-sentence prediction or none.
        predictions: Places predicted in an optimizer step, all micro-batches together.

    Raises:
        Refused: The model is not supported.
    """
    encoder = model.get_submodule(str(model.base_model_prefix))
    inside = {id(module) for module in encoder.modules()}
    per_row = per_prediction = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module) not in inside:
            flops = 2 * module.in_features * module.out_features
            if name.endswith("seq_relationship"):
                per_row += flops
            else:
                per_prediction += flops
    cost = count(encoder)
    return MaskedCost(replace(cost, per_row=cost.per_row + per_row), per_prediction, predictions)
