"""FLOPs and parameters, counted from the shapes of a live model, cut or not."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .anatomy import Anatomy, of
from .anatomy.modes import evaluating
from .anatomy.probe import probe

BACKWARD = 2
"""A backward pass does two matrix products for each one of the forward pass."""
PRODUCTS = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d)
"""Layers whose FLOPs are two a weight for every vector that they put out."""
MOMENTS = 2
"""Of each trained parameter, in AdamW and in LAMB."""
LENGTH = 7
"""Tokens a row of the batch that a model is tried on."""
PEAK = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
"""Dense bf16 FLOP/s on the datasheet, by the name that the device gives itself."""


@dataclass(frozen=True)
class Cost:
    """What one forward pass costs, as a function of the batch.

    Matrix products only, a multiply-add as two operations, as `torch.utils.flop_counter` counts.
    Of an encoder-decoder it is the cost of the encoder.
    """

    per_token: int
    """FLOPs of linear layers that see every token."""
    per_row: int
    """FLOPs of layers that see a fixed number of vectors a row (pooler, classifier, image patches)."""
    per_pair: int
    """FLOPs for every pair of tokens of a row: attention scores and their weighted sum."""
    parameters: int
    """Parameters of the whole model."""
    per_batch: int = 0
    """FLOPs once a forward pass, whatever the batch (DeBERTa's projections of relative positions)."""

    def forward(self, shapes: Iterable[tuple[int, int]]) -> int:
        """FLOPs of a forward pass over micro-batches of `(rows, padded length)`."""
        return sum(
            self.per_batch + rows * (self.per_row + length * self.per_token + length * length * self.per_pair)
            for rows, length in shapes
        )

    def step(self, shapes: Iterable[tuple[int, int]]) -> int:
        """FLOPs of a training step, forward and backward."""
        return (1 + BACKWARD) * self.forward(shapes)


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds for as long as it lasts, from shapes; activations come on top."""

    parameters: int
    gradients: int
    optimizer: int
    """Both moments of AdamW or LAMB, in the parameters' dtype."""


@dataclass(frozen=True)
class Size:
    """What a model costs to run and to hold."""

    cost: Cost
    memory: Memory


@dataclass(frozen=True)
class _Call:
    """One use of one layer in a forward pass."""

    module: nn.Module
    vectors: int
    """That it put out."""
    shape: tuple[int, ...]
    """Of its input."""

    @property
    def flops(self) -> int:
        """Of one vector."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return 2 * weight.numel()


def count(model: nn.Module) -> Cost:
    """Read a model's cost off its live shapes; two tiny forward passes tell what acts on tokens and what on rows.

    Raises:
        Refused: The model is not supported.
    """
    anatomy = of(model)
    one, two = (_calls(model, anatomy, rows) for rows in (1, 2))
    first = model.get_submodule(anatomy.layers[0].query)
    rows, length = next(call.shape[:2] for call in one if call.module is first)
    outputs = {model.get_submodule(layer.output): layer for layer in anatomy.layers}
    token = row = pair = batch = 0
    for call, doubled in zip(one, two, strict=True):
        if call.vectors == doubled.vectors:
            batch += call.flops * call.vectors
        elif call.vectors == rows * length:
            token += call.flops
        else:
            row += call.flops * call.vectors // rows
        if call.module in outputs:  # once for every pass through an attention
            pair += 4 * call.shape[-1]
            if anatomy.family.position_flops:
                token += anatomy.family.position_flops(model.get_submodule(outputs[call.module].attention))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(token, row, pair, parameters, batch)


def memory(model: nn.Module) -> Memory:
    """Bytes of a model's parameters, and of the gradients and moments of those that are trained."""
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    return Memory(sum(size for size, _ in sizes), trained, MOMENTS * trained)


def sized(model: nn.Module) -> Size:
    """Cost and memory of a model.

    Raises:
        Refused: As `count`.
    """
    return Size(count(model), memory(model))


def watch_memory(device: torch.device) -> None:
    """Begin anew what `peak_memory` tells; what an earlier run has left in the allocator's hands is given back."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes taken from a CUDA device since `watch_memory`, pools of graphs included; None elsewhere."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def _calls(model: nn.Module, anatomy: Anatomy, rows: int) -> list[_Call]:
    """Every use of a layer in a forward pass of the model's core in eval mode, in order."""
    calls: list[_Call] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        channels = module.bias if isinstance(module, Conv1D) else module.weight
        assert isinstance(channels, Tensor)
        calls.append(_Call(module, output.numel() // channels.shape[0], tuple(inputs[0].shape)))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, PRODUCTS)]
    try:
        with evaluating(model), torch.no_grad():
            probe(model, anatomy, rows, LENGTH)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


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
