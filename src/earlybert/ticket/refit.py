"""Least-squares refit of what is kept after a cut: W_O and W_2 learn to stand in for what is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..anatomy import Refused, of
from ..anatomy.linear import Linear, linear_at, matrix
from ..anatomy.linear import inputs as inputs_of
from ..anatomy.linear import outputs as outputs_of
from ..anatomy.modes import evaluating
from .exact import full_precision

RIDGE = 1e-2
"""Pull towards the columns as they were, in units of the mean square of the inputs."""
CHUNK = 4096
"""Tokens whose products are summed in fp32; further sums are in fp64."""
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Refit:
    """What became of one linear: relative squared error of its output on batches it was not fitted to."""

    name: str
    before: float
    after: float
    """Equal to `before` when the solution was no better there, or not to be had, and was dropped."""


def refit(small: nn.Module, dense: nn.Module, batches: Sequence[Batch], *, ridge: float = RIDGE) -> list[Refit]:
    """Fit the kept columns of W_O and W_2, and their biases, to the dense model's outputs; in place.

    Layer by layer, on the inputs that the cut and so far refitted network really has (as in He et
    al. 2017, Channel pruning, Sec. 3.2): the smallest squared error against what the dense linear
    gives for the same tokens, plus `ridge` times the squared change. A quarter of the batches is kept
    back; a linear that does not get better on them stays as it was. One forward pass of the cut model
    over all batches does it: a linear is refitted when the pass comes to it.

    Args:
        small: A cut model.
        dense: The model it was cut from, with the weights it had then.
        batches: Padded rows `[rows, length]` with `attention_mask`, on the device. At least two.
        ridge: Strength of the pull towards the present columns.

    Returns:
        Two entries a layer, in the order they were fitted.

    Raises:
        Refused: Fewer than two batches, the models do not belong together, or a layer runs more than once.
    """
    if len(batches) < 2:
        raise Refused("a refit needs at least two batches: one to fit and one to check.")
    names = [name for layer in of(small).layers for name in (layer.output, layer.down)]
    if names != [name for layer in of(dense).layers for name in (layer.output, layer.down)]:
        raise Refused("a refit needs the dense model that the small one was cut from.")
    of(small).refuse_repeats("refits")
    inputs = [{name: batch[name] for name in batch if name in _INPUTS} for batch in batches]
    fitted = sum(int(batch["attention_mask"].sum()) for batch in inputs[: -max(1, len(batches) // 4)])
    whole = joined(inputs)
    present = whole["attention_mask"].bool()
    results: list[Refit] = []
    with torch.no_grad(), full_precision(), evaluating(small), evaluating(dense):
        targets = _outputs(dense, names, inputs)  # by name and batch, fp16 [tokens, hidden]

        def fit(name: str, linear: Linear) -> Any:
            def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
                target = torch.cat(targets.pop(name))
                results.append(_refit_one(name, linear, given[0][present].float(), target, fitted, ridge))

            return hook

        handles = [
            linear_at(small, name).register_forward_pre_hook(fit(name, linear_at(small, name))) for name in names
        ]
        try:
            small(**whole)  # what a linear is given comes from those that were refitted before it
        finally:
            for handle in handles:
                handle.remove()
    return results


def joined(batches: Sequence[Batch]) -> Batch:
    """Padded batches as one, padded to the longest."""
    longest = max(batch["attention_mask"].shape[1] for batch in batches)
    return {
        name: torch.cat([F.pad(batch[name], (0, longest - batch[name].shape[1])) for batch in batches])
        for name in batches[0]
    }


def flops(small: nn.Module, forward_small: int, forward_dense: int, tokens: int) -> int:
    """What a refit costs: the passes, the sums of products and the solutions.

    Args:
        small: The cut model.
        forward_small: FLOPs of its forward pass over all batches, joined.
        forward_dense: FLOPs of the dense model's over all batches.
        tokens: Tokens in all batches.
    """
    layers = of(small).layers
    linears = [linear_at(small, name) for layer in layers for name in (layer.output, layer.down)]
    shapes = [(inputs_of(linear) + (linear.bias is not None), outputs_of(linear)) for linear in linears]
    sums = sum(2 * tokens * width * (width + hidden) for width, hidden in shapes)
    solving = sum(width**3 // 3 + 2 * width**2 * hidden for width, hidden in shapes)
    return forward_dense + forward_small + sums + solving


_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def _refit_one(name: str, linear: Linear, x: Tensor, target: Tensor, fitted: int, ridge: float) -> Refit:
    """Refit one linear on its inputs `[tokens, features]`: the first `fitted` tokens to fit to, the rest to check."""
    features = inputs_of(linear)
    missing = target.float() - linear.forward(x)  # not a call: the hook that brought us here is on it
    if linear.bias is not None:
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    cross = torch.zeros(x.shape[1], target.shape[-1], dtype=torch.float64, device=x.device)
    for part, wanted in zip(x[:fitted].split(CHUNK), missing[:fitted].split(CHUNK), strict=True):
        gram += (part.T @ part).double()
        cross += (part.T @ wanted).double()
    change = _solve(gram, cross, ridge)
    energy = target[fitted:].float().square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    before = float(missing[fitted:].square().sum() / energy)
    after = before
    if change is not None:
        after = float((missing[fitted:] - x[fitted:] @ change).square().sum() / energy)
    if change is None or not after < before:
        return Refit(name, before, before)
    matrix(linear).add_(change[:features].T)
    if linear.bias is not None:
        linear.bias.add_(change[-1])
    return Refit(name, before, after)


def _solve(gram: Tensor, cross: Tensor, ridge: float) -> Tensor | None:
    """`[features (+ 1 for the bias), hidden]` fp32, or None where the system cannot be solved to any use.

    The ridge bounds the condition number by (features + 1) / ridge.
    """
    pull = ridge * gram.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(gram + pull * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    if int(failed):
        return None
    change = torch.cholesky_solve(cross, factor).float()
    return change if bool(torch.isfinite(change).all()) else None


def _outputs(dense: nn.Module, names: Sequence[str], inputs: Sequence[Batch]) -> dict[str, list[Tensor]]:
    """What each linear gives for the tokens that are there; fp16, since there are many."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    present: list[Tensor] = []

    def keep(name: str) -> Any:
        return lambda _, __, output: found[name].append(output[present[-1]].half())

    handles = [dense.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        for batch in inputs:
            present.append(batch["attention_mask"].bool())
            dense(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
