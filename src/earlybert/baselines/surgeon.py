"""Optimal brain surgeon: what is lost when a unit goes and the rest of its layer makes up for it as well as it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..anatomy import of
from ..anatomy.linear import inputs, linear_at, matrix
from ..anatomy.modes import evaluating
from ..cost import Cost
from ..tasks.batches import Batch, Shape
from ..ticket import Scores
from ..ticket.exact import full_precision
from ..ticket.refit import RIDGE
from ..train.losses import SPAN
from ..train.precision import autocast


class Surgeon:
    """Scores that see redundancy: a unit that others can stand in for is worth little.

    W_O and W_2 are linear in the heads and neurons. With H the (centred, ridged) second moments of
    the inputs, taking unit u out and refitting the others changes the output by at least
    tr(W_u [H^-1]_uu^-1 W_u^T) (Hassibi and Stork 1993, for a block and many outputs); that, over the
    output's own energy, is the score. Centred, because the bias takes up a mean.

    Args:
        model: A supported model, whole or cut before, whose layers each run once. Its weights are not changed.
        precision: Of the forward passes; moments are fp64.

    Attributes:
        tokens: How many were seen.

    Raises:
        Refused: The model is not supported, was cut and does not say what is left, or runs a layer more than once.
    """

    def __init__(self, model: nn.Module, precision: Literal["bf16", "no"] = "no") -> None:
        self.model = model
        self.anatomy = of(model)
        self.anatomy.refuse_unknown()
        self.tokens = 0
        self._precision: Literal["bf16", "no"] = precision
        self.anatomy.refuse_repeats("surgeon scores")
        self._device = next(model.parameters()).device
        self._names = [name for layer in self.anatomy.layers for name in (layer.output, layer.down)]
        widths = {name: inputs(linear_at(model, name)) for name in self._names}
        self._sums = {
            name: torch.zeros(width, dtype=torch.float64, device=self._device) for name, width in widths.items()
        }
        self._moments = {
            name: torch.zeros(width, width, dtype=torch.float64, device=self._device) for name, width in widths.items()
        }

    def add(self, batch: Batch) -> None:
        """Take in a batch of padded rows on the model's device; labels are not looked at."""
        present = batch["attention_mask"].bool()
        given = {name: value for name, value in batch.items() if name not in ("labels", *SPAN)}
        handles = [linear_at(self.model, n).register_forward_pre_hook(self._take(n, present)) for n in self._names]
        try:
            with evaluating(self.model), torch.no_grad(), full_precision(), autocast(self._precision, self._device):
                self.model(**given)
        finally:
            for handle in handles:
                handle.remove()
        self.tokens += int(present.sum())

    def _take(self, name: str, present: Tensor) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            x = given[0][present].float()  # [tokens, features]
            self._sums[name] += x.sum(0).double()
            with torch.autocast(x.device.type, enabled=False):
                self._moments[name] += (x.T @ x).double()

        return hook

    def flops(self, cost: Cost, shape: Shape, tokens: int) -> int:
        """Of one batch: the forward pass and the products of the inputs."""
        return cost.forward([shape]) + sum(2 * tokens * len(moments) ** 2 for moments in self._moments.values())

    def scores_flops(self) -> int:
        """Of `scores`: an inverse and the energy of the output for each linear, the small solves left out."""
        outs = {name: matrix(linear_at(self.model, name)).shape[0] for name in self._names}
        return sum(2 * len(m) ** 3 + 2 * outs[name] * len(m) ** 2 for name, m in self._moments.items())

    def scores(self, seed: int = 0) -> Scores:
        """Relative loss of output, by unit.

        Args:
            seed: Breaks ties when drawing.
        """
        heads, neurons = [], []
        for layer in self.anatomy.layers:
            heads.append(self._lost(layer.output, layer.heads, self.anatomy.head_size))
            neurons.append(self._lost(layer.down, layer.neurons, 1))
        return Scores.of_units(self.anatomy, heads, neurons, source="brain surgeon", seed=seed)

    def _lost(self, name: str, units: int, size: int) -> Tensor:
        n = max(1, self.tokens)
        mean = self._sums[name] / n
        spread = self._moments[name] / n - torch.outer(mean, mean)  # [features, features]
        weight = matrix(linear_at(self.model, name)).detach().double()  # [hidden, features]
        energy = ((weight @ spread) * weight).sum().clamp_min(torch.finfo(torch.float32).tiny)
        pull = RIDGE * (self._moments[name].diagonal() / n).mean()
        inverse = torch.linalg.inv(spread + pull * torch.eye(len(spread), dtype=spread.dtype, device=spread.device))
        blocks = inverse.view(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [units, size, size]
        columns = weight.view(-1, units, size).transpose(0, 1)  # [units, hidden, size]
        solved = torch.linalg.solve(blocks, columns.transpose(1, 2))  # [units, size, hidden]
        return ((columns.transpose(1, 2) * solved).sum((1, 2)) / energy).float().cpu()
