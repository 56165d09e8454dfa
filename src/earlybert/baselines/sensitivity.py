"""Scores from gradients at fixed weights: first-order Taylor and Fisher, example by example."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..anatomy import Refused, of
from ..anatomy.modes import evaluating
from ..cost import Cost
from ..tasks.batches import Batch, Shape
from ..ticket import Scores
from ..train.losses import SPAN, loss_of, span_loss
from ..train.precision import autocast

Kind = Literal["taylor", "fisher"]
PASSES = 2
"""FLOPs of a batch in forward passes: one forward, and a backward to the activations alone."""


class Sensitivity:
    """How much the loss of single examples depends on each head and each neuron.

    A coefficient of 1 stands before W_O for every head and before W_2 for every neuron, as in Eq. 2
    and 3, but one *per example*: the gradient of an example's loss to it is g. Taylor is the mean of
    |g| (Michel et al. 2019, Eq. 5), Fisher the mean of g^2 (Kwon et al. 2022, Eq. 9).

    Args:
        model: A supported model, whole or cut before, with a loss. Its weights are not changed.
        kind: `taylor` or `fisher`.
        precision: Of the passes.

    Attributes:
        examples: How many were seen.

    Raises:
        Refused: The model is not supported, or was cut and does not say what is left, or the kind is neither.
    """

    def __init__(self, model: nn.Module, kind: Kind, precision: Literal["bf16", "no"] = "no") -> None:
        if kind not in ("taylor", "fisher"):
            raise Refused(f"the sensitivity must be taylor or fisher, got {kind!r}.")
        self.model = model
        self.kind = kind
        self.anatomy = of(model)
        self.anatomy.refuse_unknown()
        self.examples = 0
        self._precision: Literal["bf16", "no"] = precision
        self._device = next(model.parameters()).device
        # Heads and neurons of the first layer, of the second, ...
        self._sums = [
            torch.zeros(units, device=self._device, dtype=torch.float64)
            for layer in self.anatomy.layers
            for units in (layer.heads, layer.neurons)
        ]

    def add(self, batch: Batch) -> None:
        """Take in a batch of padded rows; labels included, on the model's device."""
        rows = len(batch["input_ids"])
        inputs = dict(batch)
        positions = {name: inputs.pop(name) for name in SPAN if name in inputs}
        with self._coefficients(rows) as coefficients, autocast(self._precision, self._device):
            output: Any = self.model(**inputs)
            mean = span_loss(output, positions, inputs["attention_mask"].bool()) if positions else loss_of(output)
            gradients = torch.autograd.grad(mean * rows, coefficients)  # [rows, 1, units], example by example
        self.examples += rows
        for place, gradient in enumerate(gradients):
            worth = gradient.double().abs() if self.kind == "taylor" else gradient.double().square()
            self._sums[place] += worth.sum((0, 1))

    def flops(self, cost: Cost, shape: Shape, tokens: int) -> int:
        """Of one batch."""
        return PASSES * cost.forward([shape])

    def scores(self, seed: int = 0) -> Scores:
        """Mean over the examples so far.

        Args:
            seed: Breaks ties when drawing.
        """
        means = [total / max(1, self.examples) for total in self._sums]
        return Scores.of_units(self.anatomy, means[::2], means[1::2], source=self.kind, seed=seed)

    @contextmanager
    def _coefficients(self, rows: int) -> Iterator[list[Tensor]]:
        """Ones `[rows, 1, units]` before W_O and W_2 of each layer; the weights themselves get no gradient."""
        found: list[Tensor] = []
        handles: list[Any] = []
        wanted = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        try:
            for layer in self.anatomy.layers:
                for name, units, width in (
                    (layer.output, layer.heads, self.anatomy.head_size),
                    (layer.down, layer.neurons, 1),
                ):
                    ones = torch.ones(rows, 1, units, device=self._device, requires_grad=True)
                    found.append(ones)
                    handles.append(self.model.get_submodule(name).register_forward_pre_hook(_scale(ones, width)))
            for parameter in wanted:
                parameter.requires_grad_(False)
            with evaluating(self.model):
                yield found
        finally:
            for handle in handles:
                handle.remove()
            for parameter in wanted:
                parameter.requires_grad_(True)


def _scale(ones: Tensor, width: int) -> Any:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        x: Tensor = inputs[0]  # [rows, length, units * width]
        return ((x * ones.repeat_interleave(width, dim=-1)).to(x.dtype),)

    return hook
