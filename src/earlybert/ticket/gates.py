"""Learnable coefficients on every head and every intermediate neuron (Eq. 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy import Refused, of
from ..anatomy.linear import Linear, linear_at, matrix


class Gates:
    """One coefficient a head and one a neuron, on a model, until they are taken off.

    Scaling head i before W_O is Eq. 2; scaling intermediate neuron j before W_2 is Eq. 3. Both are a
    scaling of the input of one linear layer, or, equal and cheaper, of the columns of its weight.
    The coefficients live outside the model: its state dict, its parameters and its classes do not
    change, and `detach` leaves it as it was to the bit.

    Args:
        model: A supported model, whole or cut before.
        on: `"weight"` scales weight columns (cost grows with the weights), `"input"` scales the
            activations as the paper writes it (cost grows with the tokens). Same function.

    Attributes:
        heads: fp32 parameter `[layers, heads of the whole model]`, starts at 1; what is gone already is and stays 0.
        neurons: fp32 parameter `[layers, neurons of the whole model]`, likewise.

    Raises:
        Refused: The model is not supported, or was cut and does not say what is left.
    """

    def __init__(self, model: nn.Module, *, on: Literal["weight", "input"] = "weight") -> None:
        self.model = model
        self.on = on
        self.anatomy = of(model)
        self.anatomy.refuse_unknown()
        device = next(model.parameters()).device
        layers = len(self.anatomy.layers)
        # fp32 whatever the model's dtype: in bf16, steps of 2e-5 around 1 round to nothing.
        self.heads = nn.Parameter(torch.ones(layers, self.anatomy.num_heads, device=device, dtype=torch.float32))
        self.neurons = nn.Parameter(torch.ones(layers, self.anatomy.num_neurons, device=device, dtype=torch.float32))
        # Where a cut model's units lie among those of the whole one; None where all are there.
        self._left: dict[str, list[Tensor]] | None = None
        if not self.anatomy.whole:
            self._left = {
                name: [torch.tensor(units, device=device) for units in getattr(self.anatomy.left, name)]
                for name in ("heads", "neurons")
            }
            for name, left in self._left.items():
                parameter: nn.Parameter = getattr(self, name)
                kept = [torch.zeros_like(row).index_fill(0, units, 1.0) for row, units in zip(parameter, left)]
                parameter.data.copy_(torch.stack(kept))
        self._gated: list[nn.Module] = []

    def parameters(self) -> list[nn.Parameter]:
        """Both coefficient tensors, for an optimizer group of their own without weight decay."""
        return [self.heads, self.neurons]

    def of(self, kind: Literal["heads", "neurons"], layer: int) -> Tensor:
        """The coefficients of what a layer has, fp32 `[heads or neurons there]`."""
        row = getattr(self, kind)[layer]
        return row if self._left is None else row[self._left[kind][layer]]

    def attach(self) -> Gates:
        """Put the coefficients into the model's forward pass.

        Raises:
            Refused: There are gates or a replaced forward on it already; nothing was changed.
        """
        for name in (part for layer in self.anatomy.layers for part in (layer.output, layer.down)):
            if "forward" in vars(self.model.get_submodule(name)):
                raise Refused(f"{name} already has its forward replaced; take other gates or hooks off first.")
        for index, layer in enumerate(self.anatomy.layers):
            self._gate(layer.output, lambda index=index: expand_heads(self.of("heads", index), self.anatomy.head_size))
            self._gate(layer.down, lambda index=index: self.of("neurons", index))
        return self

    def detach(self) -> None:
        """Take the coefficients off. The model is what it was before `attach`."""
        for module in self._gated:
            del module.forward
        self._gated.clear()

    def __enter__(self) -> Gates:
        return self.attach()

    def __exit__(self, *exc: object) -> None:
        self.detach()

    def add_l1(self, l1: tuple[float, float]) -> None:
        """Add the gradient of the L1 term of Eq. 4, once per optimizer step, after backward.

        Args:
            l1: lambda for heads and for neurons.
        """
        for parameter, strength in zip(self.parameters(), l1, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(parameter.detach().sign(), alpha=strength)

    def row(self) -> Tensor:
        """All coefficients as one fp32 vector `[layers * heads + layers * neurons]`, heads first."""
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters()])

    def _gate(self, name: str, coefficients: Callable[[], Tensor]) -> None:
        linear: Any = linear_at(self.model, name)
        scale: Any = scaled_weight if self.on == "weight" else scaled_input
        linear.forward = lambda input: scale(linear, input, coefficients())
        self._gated.append(linear)


def expand_heads(coefficients: Tensor, head_size: int) -> Tensor:
    """One value a head `[heads]` to one a feature `[heads * head_size]`."""
    return coefficients[:, None].expand(-1, head_size).reshape(-1)


def scaled_input(linear: Linear, x: Tensor, c: Tensor) -> Tensor:
    """`linear(c * x)`, the product taken in fp32. x: [..., features], c: [features] fp32."""
    return F.linear((x * c).to(x.dtype), matrix(linear), linear.bias)


def scaled_weight(linear: Linear, x: Tensor, c: Tensor) -> Tensor:
    """`linear(c * x)` with c folded into the weight's columns. x: [..., features], c: [features] fp32."""
    return F.linear(x, (matrix(linear) * c).to(linear.weight.dtype), linear.bias)
