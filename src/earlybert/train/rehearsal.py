"""A fast step held against the plain one before a run trusts it: on this machine, this model and these rows.

Kernels that are right on one GPU may be wrong on the next: another compiler, another driver, a size nobody tried.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..anatomy import of
from ..tasks.batches import Batch
from ..ticket.memory import out_of_memory
from .fast import RaggedStep
from .masked import APART
from .optimizer import set_rate
from .step import EagerStep, present
from .untouched import aside

ROWS, FEWER, MICRO_BATCHES = 32, 8, 2
"""Of a rehearsal at most: rows of a micro-batch, rows where there is no memory for so many, micro-batches of a step."""
RATES = (1.0, 0.25, 0.5)
"""Factors on the learning rates of its steps. What is to be a CUDA graph is met for the second time in the second, and
replayed on other data in the third."""
TIMES, SHARE, NEGLIGIBLE, LOSS = 3.0, 0.1, 1e-3, 0.02
"""How far from fp32 a vector may be: so many times as far as that of the plain step in the same precision, and a share
of its own length; of a gradient, a share of the length of all together, too. And the share of a loss."""
HARMLESS = 1e-12
"""A probability of dropout that is not 0 and drops nothing."""

Make = Callable[[Literal["bf16", "no"]], EagerStep]
"""The plain step on the same model and optimizer, in a precision."""

T = TypeVar("T")

log = logging.getLogger("earlybert")


class Unusable(RuntimeError):
    """A step has failed in a way that leaves nothing to go on with."""


def rehearse(step: EagerStep, plain: Make, sample: Sequence[Batch]) -> str | None:
    """Take a few steps without dropout, and the same with the plain step in its precision and in fp32, and compare.

    Losses, first moments and updates may be a little further from those in fp32 than those of the plain step are. With
    dropout, two steps on the same rows must differ. Parameters, optimizer, modes and the random state are put back.

    Args:
        step: On its device; its optimizer is an AdamW or a `Lamb`.
        plain: Makes the reference.
        sample: Micro-batches of one optimizer step.

    Returns:
        What is wrong with the step, to be read by a person; None where nothing is, and where there is no reference:
        no rows, or the plain step fails on them, as without a label or memory.

    Raises:
        Unusable: The step has failed, and so does putting things back: a GPU does nothing more after some errors.
    """
    if not sample:
        return None
    why = ""
    for rows in (ROWS, FEWER):
        try:
            return _rehearse(step, plain, [_few(batch, rows) for batch in sample[:MICRO_BATCHES]])
        except _NoReference as found:
            why = str(found)
            if not found.memory:
                break
    log.warning("the fast step was not rehearsed: %s", why)
    return None


class _NoReference(Exception):
    """The plain step cannot take these rows; `memory` says whether it had too little."""

    def __init__(self, failure: _Failure) -> None:
        super().__init__(failure.line)
        self.memory = failure.memory


def _rehearse(step: EagerStep, plain: Make, few: Sequence[Batch]) -> str | None:
    """As `rehearse`, on exactly these rows."""
    batches = [few]
    while len(batches) < len(RATES):
        batches.append([_other(batch) for batch in batches[-1]])
    bench, failure = _Bench(step), None
    try:
        with aside(step.model):
            step.model.eval()
            found, failure = _caught(lambda: _reference(bench, plain, batches))
            if found is None:
                bench.begin(step)
                assert failure is not None
                raise _NoReference(failure)
            fault, failure = _caught(lambda: _fault(bench, *found, batches))
            bench.begin(step)
    except RuntimeError as error:
        if failure is None:
            raise
        raise Unusable(f"a rehearsed step failed ({failure.line}); start again with --engine eager.") from error
    return fault if failure is None else f"it failed: {failure.line}"


@dataclass
class _Failure:
    """What is left of an exception: its traceback would hold what a GPU's memory is wanted for."""

    line: str
    memory: bool


def _caught(work: Callable[[], T]) -> tuple[T | None, _Failure | None]:
    """What work gives, or how it failed: a compiler and a driver may raise anything."""
    try:
        return work(), None
    except Exception as error:
        return None, _Failure(_line(error), out_of_memory(error))


def _reference(bench: _Bench, plain: Make, batches: Sequence[Sequence[Batch]]) -> tuple[_Exact, _Apart]:
    """The steps in fp32, and how far from them the plain step is in the fast one's precision."""
    exact = _Exact(bench, bench.take(plain("no"), batches, RATES))
    losses = bench.take(plain(bench.step.precision), batches, RATES)
    return exact, exact.distances(losses, bench.results())


def _fault(bench: _Bench, exact: _Exact, rounding: _Apart, batches: Sequence[Sequence[Batch]]) -> str | None:
    """What is wrong with the fast step."""
    with _harmless_dropout(bench.step):
        losses = bench.take(bench.step, batches, RATES)
    fault = exact.compare(losses, rounding, exact.distances(losses, bench.results()))
    return fault or _dropout_fault(bench, batches[0])


@contextmanager
def _harmless_dropout(step: EagerStep) -> Iterator[None]:
    """In training, but nothing is dropped: what a step computes with dropout is what the plain one does without.

    One that keeps dropout on attention probabilities is in evaluation: not all models have those in a module.
    """
    dropouts = [module for module in step.model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    before = [module.p for module in dropouts]
    step.model.train(not (isinstance(step, RaggedStep) and step.kernel == "padded"))
    for module in dropouts:
        module.p = HARMLESS
    try:
        yield
    finally:
        for module, p in zip(dropouts, before, strict=True):
            module.p = p


def _dropout_fault(bench: _Bench, few: Sequence[Batch]) -> str | None:
    """What is wrong with the fast step's dropout: steps on the same rows are to be finite and to differ."""
    model: Any = bench.step.model
    body = getattr(model, str(model.base_model_prefix), model)
    model.eval()
    body.train()  # alone: dropout of a head is a stock module
    losses = bench.take(bench.step, [few] * len(RATES), [0.0] * len(RATES))
    if not all(bool(moment.isfinite().all()) for moment, _ in bench.results()):
        return "its gradients with dropout are not finite."
    if not all(map(math.isfinite, losses)):
        return f"its losses with dropout are {', '.join(f'{loss:.4f}' for loss in losses)}."
    if _drops(model, body) and losses[-1] == losses[-2]:
        return "its dropout is the same in every step."
    return None


class _Bench:
    """Takes steps from where a step's parameters and optimizer are now, as often as one likes."""

    def __init__(self, step: EagerStep) -> None:
        self.step = step
        groups = step.optimizer.param_groups
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        known = {id(parameter): name for name, parameter in step.model.named_parameters()}
        self.names = [known.get(id(parameter), "the coefficients") for parameter in self.parameters]
        self.groups = [
            group.get("name", f"group {number}") for number, group in enumerate(groups) for _ in group["params"]
        ]
        # On the CPU: a GPU may have no room for a second model.
        self._start = [parameter.detach().to("cpu", copy=True) for parameter in self.parameters]
        saved = step.optimizer.state_dict()
        begun = any(float(one.get("step", 0)) > 0 for one in saved["state"].values())  # else there is nothing but zeros
        state = {number: _apart_from(one) for number, one in saved["state"].items()} if begun else {}
        self._state = {**saved, "state": state}

    def begin(self, step: EagerStep) -> None:
        """Put everything back, and let a step know."""
        with torch.no_grad():
            for parameter, before in zip(self.parameters, self._start, strict=True):
                parameter.copy_(before)
                parameter.grad = None
        fresh = {number: _apart_from(one) for number, one in self._state["state"].items()}
        step.optimizer.load_state_dict({**self._state, "state": fresh})
        step.refresh()

    def take(self, step: EagerStep, batches: Sequence[Sequence[Batch]], rates: Sequence[float]) -> list[float]:
        """A step for each of `batches`, at these factors on the base learning rates; the losses."""
        self.begin(step)
        losses = []
        for batch, rate in zip(batches, rates, strict=True):
            set_rate(step.optimizer, rate)
            losses.append(float(step(step.prepare(batch))))
        return losses

    def results(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each parameter, what has arrived as gradients (the first moment) and what was added to it, on the CPU."""
        state: dict[Any, Any] = self.step.optimizer.state
        for parameter, before in zip(self.parameters, self._start, strict=True):
            moment = state.get(parameter, {}).get("exp_avg", torch.zeros(()))
            yield moment.to("cpu", copy=True), parameter.detach().cpu() - before


@dataclass
class _Apart:
    """How far steps are from those in fp32."""

    loss: float
    """The largest distance of a loss."""
    gradients: list[float]
    """Of each parameter's first moment."""
    updates: dict[str, float]
    """Of what was added to the parameters of each group."""


class _Exact:
    """Steps of the plain kind in fp32.

    Args:
        bench: That has just taken them.
        losses: Theirs.
    """

    def __init__(self, bench: _Bench, losses: list[float]) -> None:
        self._bench, self._losses, self._results = bench, losses, list(bench.results())
        # As far as steps would be that did nothing: the lengths.
        self._lengths = self.distances(losses, ((torch.zeros(()), torch.zeros(())) for _ in self._results))

    def distances(self, losses: Sequence[float], results: Iterable[tuple[Tensor, Tensor]]) -> _Apart:
        """How far away other steps are."""
        gradients: list[float] = []
        updates: dict[str, list[float]] = {}
        for group, found, right in zip(self._bench.groups, results, self._results, strict=True):
            gradients.append(float((found[0] - right[0]).norm()))
            updates.setdefault(group, []).append(float((found[1] - right[1]).norm()))
        loss = max(abs(a - b) for a, b in zip(losses, self._losses, strict=True))
        return _Apart(loss, gradients, {name: math.hypot(*each) for name, each in updates.items()})

    def compare(self, losses: Sequence[float], rounding: _Apart, found: _Apart) -> str | None:
        """What of a step is further away than rounding explains."""
        for number, (loss, right) in enumerate(zip(losses, self._losses, strict=True), start=1):
            if not abs(loss - right) <= TIMES * rounding.loss + LOSS * abs(right):
                return f"its loss in step {number} is {loss:.4f} where it is {right:.4f} in fp32."
        slack = NEGLIGIBLE * math.hypot(*self._lengths.gradients)
        vectors = zip(self._bench.names, found.gradients, rounding.gradients, self._lengths.gradients, strict=True)
        for name, error, explained, length in vectors:
            if not error <= TIMES * explained + SHARE * length + slack:
                return f"its gradient of {name} is {_far(error, explained, length)}."
        for name, error in found.updates.items():  # by itself, an update near zero is the sign of what was rounded
            explained, length = rounding.updates[name], self._lengths.updates[name]
            if not error <= TIMES * explained + SHARE * length:
                return f"its update of the {name} is {_far(error, explained, length)}."
        return None


def _far(error: float, explained: float, length: float) -> str:
    return f"{error:.2g} away from that in fp32, whose length is {length:.2g}; rounding explains {explained:.2g}"


def _apart_from(state: dict[str, Any]) -> dict[str, Any]:
    """A parameter's state on the CPU, nothing shared: `torch.optim` would raise a shared count for each that has it."""
    return {key: each.to("cpu", copy=True) if isinstance(each, Tensor) else each for key, each in state.items()}


def _few(batch: Batch, rows: int) -> Batch:
    """The first rows of a batch; all where some of its entries have no rows."""
    return batch if any(name in batch for name in APART) else {name: tensor[:rows] for name, tensor in batch.items()}


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
