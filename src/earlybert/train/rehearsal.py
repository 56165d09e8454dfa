"""A fast step held against the plain one before a run trusts it: on this machine, this model and these rows.

Kernels that are right on one GPU may be wrong on the next: another compiler, another driver, a size nobody tried.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..anatomy import Refused, of
from ..tasks.batches import Batch
from ..ticket.memory import out_of_memory
from .masked import APART
from .optimizer import set_rate
from .step import EagerStep, present
from .untouched import untouched

ROWS, MICRO_BATCHES, STEPS = 8, 2, 3
"""Of a rehearsal at most: rows of a micro-batch, micro-batches of a step, and steps. What is to be a CUDA graph is met
for the second time in the second step, and replayed on other data in the third."""
TIMES, SHARE, NEGLIGIBLE, LOSS = 3.0, 0.1, 1e-3, 0.02
"""How far from fp32 a vector may be: so many times as far as that of the plain step in the same precision, and a share
of its own length; of a gradient, a share of the length of all together, too. And the share of a loss."""

Make = Callable[[Literal["bf16", "no"]], EagerStep]
"""The plain step on the same model and optimizer, in a precision."""

log = logging.getLogger("earlybert")


def rehearse(step: EagerStep, plain: Make, sample: Sequence[Batch]) -> str | None:
    """Take a few steps, dropout off, and the same with the plain step in its precision and in fp32, and compare.

    Losses, first moments and updates may be a little further from those in fp32 than those of the plain step are. With
    dropout on, two steps on the same rows must differ. Parameters, optimizer, modes and the random state are put back.

    Args:
        step: On its device; its optimizer is an AdamW or a `Lamb`.
        plain: Makes the reference.
        sample: Micro-batches of one optimizer step.

    Returns:
        What is wrong with the step, to be read by a person; None where nothing is, and where there is no reference:
        no rows, no label in these, or no memory.
    """
    if not sample:
        return None
    few = [_few(batch) for batch in sample[:MICRO_BATCHES]]
    batches = [few]
    while len(batches) < STEPS:
        batches.append([_other(batch) for batch in batches[-1]])
    bench = _Bench(step)
    body = getattr(step.model, str(step.model.base_model_prefix), step.model)
    with untouched(step.model):
        try:
            step.model.eval()
            try:
                exact = bench.take(plain("no"), batches)
                rounded = bench.take(plain(step.precision), batches)
            except (Refused, RuntimeError, MemoryError) as error:
                if not isinstance(error, Refused) and not out_of_memory(error):
                    raise
                log.warning("the fast step was not rehearsed: %s", _line(error))
                return None
            try:
                found = bench.take(step, batches)
                body.train()  # alone: dropout of a head is a stock module
                again = bench.take(step, [few] * STEPS, factor=0.0)
            except Exception as error:  # a compiler and a driver may raise anything, and the plain step is there
                return f"it failed: {_line(error)}"
        finally:
            bench.begin(step)
    fault = _compare(found, rounded, exact, bench)
    if fault is None and _drops(step.model, body) and again.losses[-1] == again.losses[-2]:
        fault = "its dropout is the same in every step."
    return fault


@dataclass
class _Taken:
    """What steps came to, on the CPU."""

    losses: list[float]
    moments: list[Tensor]
    """First moments of the parameters: what arrived as gradients."""
    moved: list[Tensor]
    """What was added to the parameters."""


class _Bench:
    """Takes steps from where a step's parameters and optimizer are now, as often as one likes."""

    def __init__(self, step: EagerStep) -> None:
        groups = step.optimizer.param_groups
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        known = {id(parameter): name for name, parameter in step.model.named_parameters()}
        self.names = [known.get(id(parameter), "the coefficients") for parameter in self.parameters]
        self.groups: dict[str, list[int]] = {}
        """Places of each group's parameters among all."""
        for number, group in enumerate(groups):
            at = sum(map(len, self.groups.values()))
            self.groups[group.get("name", f"group {number}")] = list(range(at, at + len(group["params"])))
        # On the CPU: a GPU may have no room for a second model.
        self._start = [parameter.detach().to("cpu", copy=True) for parameter in self.parameters]
        saved = step.optimizer.state_dict()
        self._state = {**saved, "state": {number: _apart_from(one) for number, one in saved["state"].items()}}

    def begin(self, step: EagerStep) -> None:
        """Put everything back, and let a step know."""
        with torch.no_grad():
            for parameter, before in zip(self.parameters, self._start, strict=True):
                parameter.copy_(before)
                parameter.grad = None
        fresh = {number: _apart_from(one) for number, one in self._state["state"].items()}
        step.optimizer.load_state_dict({**self._state, "state": fresh})
        step.refresh()

    def take(self, step: EagerStep, batches: Sequence[Sequence[Batch]], *, factor: float = 1.0) -> _Taken:
        """A step for each of `batches`, at `factor` times the base learning rates."""
        self.begin(step)
        losses = []
        for batch in batches:
            set_rate(step.optimizer, factor)
            losses.append(float(step(step.prepare(batch))))
        state: dict[Any, Any] = step.optimizer.state
        none = torch.zeros(())
        moments = [state.get(parameter, {}).get("exp_avg", none).to("cpu", copy=True) for parameter in self.parameters]
        moved = [now.detach().cpu() - before for now, before in zip(self.parameters, self._start, strict=True)]
        return _Taken(losses, moments, moved)


def _apart_from(state: dict[str, Any]) -> dict[str, Any]:
    """A parameter's state on the CPU, nothing shared: `torch.optim` would raise a shared count for each that has it."""
    return {key: each.to("cpu", copy=True) if isinstance(each, Tensor) else each for key, each in state.items()}


def _compare(found: _Taken, rounded: _Taken, exact: _Taken, bench: _Bench) -> str | None:
    """What of some steps is further from fp32 than the plain step's rounding explains."""
    apart = max(abs(a - b) for a, b in zip(rounded.losses, exact.losses, strict=True))
    for number, (loss, right) in enumerate(zip(found.losses, exact.losses, strict=True), start=1):
        if not abs(loss - right) <= TIMES * apart + LOSS * abs(right):
            return f"its loss in step {number} is {loss:.4f} where it is {right:.4f} in fp32."
    vectors = zip(found.moments, rounded.moments, exact.moments, strict=True)
    gradients = [_Apart.of([a], [b], [c]) for a, b, c in vectors]
    whole = math.hypot(*(each.length for each in gradients))
    for name, each in zip(bench.names, gradients, strict=True):
        if not each.error <= each.allowed + NEGLIGIBLE * whole:
            return f"its gradient of {name} is {each}."
    for name, members in bench.groups.items():  # by itself, an update near zero is the sign of what was rounded
        each = _Apart.of(*([taken.moved[member] for member in members] for taken in (found, rounded, exact)))
        if not each.error <= each.allowed:
            return f"its update of the {name} is {each}."
    return None


@dataclass
class _Apart:
    """Distances of a vector that is given in parts."""

    error: float
    """Of the fast step's from that in fp32."""
    rounding: float
    """Of the plain step's from that in fp32."""
    length: float
    """Of that in fp32."""

    @classmethod
    def of(cls, found: Sequence[Tensor], rounded: Sequence[Tensor], exact: Sequence[Tensor]) -> _Apart:
        errors = [float((a - c).norm()) for a, c in zip(found, exact, strict=True)]
        roundings = [float((b - c).norm()) for b, c in zip(rounded, exact, strict=True)]
        return cls(math.hypot(*errors), math.hypot(*roundings), math.hypot(*(float(c.norm()) for c in exact)))

    @property
    def allowed(self) -> float:
        """The largest error that rounding explains."""
        return TIMES * self.rounding + SHARE * self.length

    def __str__(self) -> str:
        return (
            f"{self.error:.2g} away from that in fp32, whose length is {self.length:.2g}; rounding to "
            f"this precision explains {self.rounding:.2g}"
        )


def _few(batch: Batch) -> Batch:
    """The first rows of a batch; all where some of its entries have no rows."""
    return batch if any(name in batch for name in APART) else {name: tensor[:ROWS] for name, tensor in batch.items()}


def _other(batch: Batch) -> Batch:
    """The same shapes with other content: every token has moved on by a place."""
    ids, there = batch["input_ids"].clone(), present(batch).bool()
    ids[there] = ids[there].roll(1)
    return {**batch, "input_ids": ids}


def _drops(model: nn.Module, body: nn.Module) -> bool:
    """Whether the body of a model has dropout elsewhere than in attention, where the fast step leaves it out."""
    blocks = [model.get_submodule(layer.query.rpartition(".")[0]) for layer in of(model).layers]
    attention = {module for block in blocks for module in block.modules()}
    return any(type(each) is nn.Dropout and each.p > 0 for each in set(body.modules()) - attention)


def _line(error: BaseException) -> str:
    """What went wrong, in one line."""
    told = str(error).strip().splitlines()
    return f"{type(error).__name__}: {told[0]}" if told else f"{type(error).__name__}."
