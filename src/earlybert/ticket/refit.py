"""Least-squares refit of what is kept after a cut: W_O and W_2 learn to stand in for what is gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import Refused, of
from ..anatomy.linear import inputs as inputs_of
from ..anatomy.linear import linear_at, matrix
from ..anatomy.linear import outputs as outputs_of
from .surgery import full_precision

RIDGE = 1e-2
"""Pull towards the columns as they were, in units of the mean square of the inputs."""
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Refit:
    """What became of one linear: relative squared error of its output on batches it was not fitted to."""

    name: str
    before: float
    after: float
    """Equal to `before` when the solution was no better there, or not to be had, and was dropped."""


class _Enough(Exception):
    """The input that was wanted is here; the rest of the forward pass is not needed."""


def refit(small: nn.Module, dense: nn.Module, batches: Sequence[Batch], *, ridge: float = RIDGE) -> list[Refit]:
    """Fit the kept columns of W_O and W_2, and their biases, to the dense model's outputs; in place.

    Layer by layer, on the inputs that the cut and so far refitted network really has (as in He et
    al. 2017, Channel pruning, Sec. 3.2): the smallest squared error against what the dense linear
    gives for the same tokens, plus `ridge` times the squared change. A quarter of the batches is kept
    back; a linear that does not get better on them stays as it was.

    Args:
        small: A cut model.
        dense: The model it was cut from, with the weights it had then.
        batches: Padded rows `[rows, length]` with `attention_mask`, on the device. At least two.
        ridge: Strength of the pull towards the present columns.

    Returns:
        Two entries a layer, in the order they were fitted.

    Raises:
        Refused: Fewer than two batches, or the models do not belong together.
    """
    if len(batches) < 2:
        raise Refused("a refit needs at least two batches: one to fit and one to check.")
    names = [name for layer in of(small).layers for name in (layer.output, layer.down)]
    if names != [name for layer in of(dense).layers for name in (layer.output, layer.down)]:
        raise Refused("a refit needs the dense model that the small one was cut from.")
    inputs = [{name: batch[name] for name in batch if name in _INPUTS} for batch in batches]
    checks = max(1, len(batches) // 4)
    with torch.no_grad(), full_precision(), _evaluating(small), _evaluating(dense):
        targets = _outputs(dense, names, inputs)  # by name and batch, fp16 [tokens, hidden]
        return [_refit_one(small, name, inputs, targets.pop(name), checks, ridge) for name in names]


def flops(small: nn.Module, forward_small: int, forward_dense: int, tokens: int) -> int:
    """What a refit costs: the passes, the sums of products and the solutions.

    Args:
        small: The cut model.
        forward_small: FLOPs of its forward pass over all batches.
        forward_dense: The same of the dense model.
        tokens: Tokens in all batches.
    """
    layers = of(small).layers
    linears = [linear_at(small, name) for layer in layers for name in (layer.output, layer.down)]
    shapes = [(inputs_of(linear) + 1, outputs_of(linear)) for linear in linears]
    # a pass ends at the linear it is for: (1 + 2 + ... + 2L) / 2L passes
    passes = forward_small * (len(linears) + 1) // 2
    sums = sum(2 * tokens * width * (width + hidden) for width, hidden in shapes)
    solving = sum(width**3 // 3 + 2 * width**2 * hidden for width, hidden in shapes)
    return forward_dense + passes + sums + solving


_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def _refit_one(
    small: nn.Module, name: str, inputs: Sequence[Batch], targets: list[Tensor], checks: int, ridge: float
) -> Refit:
    linear = linear_at(small, name)
    features = inputs_of(linear)
    width = features + (linear.bias is not None)
    gram = torch.zeros(width, width, dtype=torch.float64, device=linear.weight.device)
    cross = torch.zeros(width, targets[0].shape[-1], dtype=torch.float64, device=linear.weight.device)
    held: list[tuple[Tensor, Tensor, Tensor]] = []
    for number, (batch, target) in enumerate(zip(inputs, targets, strict=True)):
        x = _input(small, linear, batch)  # [tokens, features]
        if linear.bias is not None:
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        missing = target.float() - linear(x[:, :features])
        if number >= len(inputs) - checks:
            held.append((x, missing, target))
            continue
        gram += (x.T @ x).double()
        cross += (x.T @ missing).double()
    change = _solve(gram, cross, ridge)
    before = _error([missing for _, missing, _ in held], held)
    after = before if change is None else _error([missing - x @ change for x, missing, _ in held], held)
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


def _error(missing: Sequence[Tensor], held: Sequence[tuple[Tensor, Tensor, Tensor]]) -> float:
    above = sum(float(part.square().sum()) for part in missing)
    below = sum(float(target.float().square().sum()) for _, _, target in held)
    return above / max(below, torch.finfo(torch.float32).tiny)


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
        if any(len(outputs) != len(inputs) for outputs in found.values()):
            raise Refused("the layers of this model run more than once; they cannot be refitted one by one.")
    finally:
        for handle in handles:
            handle.remove()
    return found


def _input(small: nn.Module, linear: nn.Module, batch: Batch) -> Tensor:
    """What this linear is given for the tokens that are there, `[tokens, features]`."""
    found: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0][batch["attention_mask"].bool()])
        raise _Enough

    handle = linear.register_forward_pre_hook(take)
    try:
        small(**batch)
    except _Enough:
        pass
    finally:
        handle.remove()
    return found[0].float()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
