"""Stage 1: train the model and its coefficients together for a short while (Sec. 3.2, Eq. 2-4)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import Refused
from ..tasks.batches import Batch
from ..ticket import Gates, HistoryWriter, Scores, Settled
from ..ticket.settled import Watch
from .clock import Clock
from .engine import Engine, build
from .loop import Done, LossWatch, Observer, loop
from .optimizer import adamw
from .precision import Precision, resolve
from .ranks import ALONE, Ranks
from .schedule import Schedule, constant
from .step import EagerStep
from .untouched import untouched

log = logging.getLogger("earlybert")


def search(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    steps: int,
    l1: float | tuple[float, float] = 1e-4,
    lr: float = 2e-5,
    gate_lr: float | None = None,
    stop: Settled | None = None,
    keep_weights: bool = False,
    accumulate: int = 1,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
    schedule: Schedule = constant,
    precision: Precision = "auto",
    engine: Engine = "eager",
    history: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Scores:
    """Find out which heads and neurons matter. The model is bit-identical afterwards.

    Args:
        model: A supported Hugging Face model with a loss, whole or cut before. It is trained where it is and then
            put back: weights, buffers, gradients, modes, configuration, and the random state of the process.
        batches: Dicts that the model accepts, labels included. A list or data loader is gone
            through again when it ends; an iterator that ends, ends the search.
        steps: Hard cap, in optimizer steps.
        l1: lambda of Eq. 4; a pair sets it for heads and for neurons.
        lr: Learning rate of the model's weights (AdamW).
        gate_lr: Learning rate of the coefficients; the model's when not given (the paper).
        stop: May end the search before the cap; without it the search runs to the cap.
        keep_weights: Keep theta_T in the result, for `apply(..., weights=scores)`.
        accumulate: Batches per optimizer step; together they count as one large batch.
        weight_decay: Of the matrices. Coefficients are never decayed.
        max_grad_norm: Of the model's gradient, the coefficients left out. None does not clip.
        schedule: Factor on both learning rates for the number of steps done; see
            `earlybert.train.linear`.
        precision: Of the forward pass; `auto` is bf16 where the hardware computes in it.
        engine: `eager`, or `fast`: no padding is computed, and on CUDA the step is one graph.
        history: A file for the coefficients after every step (`earlybert.History` reads it).
        seed: Breaks ties when a ticket is drawn from the result.

    Returns:
        The coefficients, and in `info` why the search ended.

    Raises:
        Refused: An unsupported model, no batches, or a setting out of range.
        Diverged: The loss became NaN or infinite. The model is put back all the same.
    """
    strengths = l1_pair(l1)
    for name, value in (("lr", lr), ("gate_lr", gate_lr), ("weight_decay", weight_decay)):
        if value is not None and not value >= 0:
            raise Refused(f"{name} must be at least 0, got {value!r}.")
    if steps < 1 or accumulate < 1:
        raise Refused(f"a search needs at least 1 step and 1 batch a step, got {steps} and {accumulate}.")
    _refuse_narrow(model)
    source = _endless(batches)
    taken: list[Batch] = []

    def sample() -> list[Batch]:
        """The first step's, which the loop is given again."""
        if not taken:
            taken.extend(islice(source, accumulate))
        return taken

    settings: dict[str, Any] = {"lr": lr, "gate_lr": gate_lr, "weight_decay": weight_decay}
    with searching(
        model,
        l1=strengths,
        max_grad_norm=max_grad_norm,
        precision=precision,
        engine=engine,
        sample=sample,
        **settings,
    ) as step:
        groups = _grouped(chain(taken, source), accumulate)
        return _searched(step, groups, steps, stop, schedule, history, seed=seed, keep_weights=keep_weights)


def _searched(
    step: EagerStep,
    batches: Iterable[list[Batch]],
    cap: int,
    stop: Settled | None,
    schedule: Schedule,
    history: str | os.PathLike[str] | None,
    *,
    seed: int,
    keep_weights: bool,
) -> Scores:
    """The loop of `search`, and what it found."""
    gates = step.gates
    assert gates is not None
    losses = LossWatch()
    observers: list[Observer] = [losses]
    watch = None if stop is None else stop.watch(cap)
    if watch is not None:
        observers.append(StopRule(gates, watch))
    with ExitStack() as files:
        if history is not None:
            observers.append(Recorder(files.enter_context(closing(HistoryWriter(history, gates)))))
        step.model.train()
        done = loop(step, batches, first=0, steps=cap, schedule=schedule, clock=Clock(step.device), observers=observers)
        losses.read()
        losses.refuse_divergence()
    if done == 0:
        raise Refused("there are no batches to search on.")
    return collect(step, done, cap=cap, watch=watch, seed=seed, keep_weights=keep_weights)


@contextmanager
def searching(
    model: nn.Module,
    *,
    lr: float,
    gate_lr: float | None = None,
    l1: tuple[float, float],
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
    precision: Precision = "auto",
    engine: Engine = "eager",
    optimizer: Callable[..., torch.optim.Optimizer] = adamw,
    restore: bool = True,
    **options: Any,
) -> Iterator[EagerStep]:
    """A step with gates on the model; afterwards the model and the random state are what they were.

    Args:
        model: As `search`.
        lr: As `search`.
        gate_lr: As `search`.
        l1: lambda of Eq. 4 for heads and for neurons.
        weight_decay: As `search`.
        max_grad_norm: As `search`.
        precision: As `search`.
        engine: As `search`.
        optimizer: Builds one as `adamw` does.
        restore: False leaves the model where the search has brought it, and saves a copy of its weights.
        **options: As `engine.build`.
    """
    gates = Gates(model)
    with untouched(model) if restore else nullcontext(), gates:
        yield build(
            engine,
            model,
            optimizer(model, lr=lr, weight_decay=weight_decay, gates=gates, gate_lr=gate_lr),
            precision=resolve(precision, next(model.parameters()).device),
            max_grad_norm=max_grad_norm,
            gates=gates,
            l1=l1,
            **options,
        )


def collect(
    step: EagerStep, done: int, *, cap: int, watch: Watch | None, seed: int, keep_weights: bool = False
) -> Scores:
    """The result of a search, taken while its gates are still on."""
    assert step.gates is not None
    rates = [group["base_lr"] for group in step.optimizer.param_groups]  # the coefficients' group is the last
    info: dict[str, Any] = {
        "l1": list(step.l1),
        "lr": rates[0],
        "gate_lr": rates[-1],
        "precision": step.precision,
        "cap": cap,
        "ended": "settled" if watch is not None and watch.settled else ("cap" if done >= cap else "data"),
    }
    if watch is not None:
        info["distances"] = watch.distances
    weights = None
    if keep_weights:
        weights = {name: tensor.detach().cpu().clone() for name, tensor in step.model.state_dict().items()}
    return Scores.of_gates(step.gates, steps=done, seed=seed, info=info, weights=weights)


class StopRule:
    """Observer that ends the search when the mask has settled: in all processes of a job when it has in the first."""

    def __init__(self, gates: Gates, watch: Watch, ranks: Ranks = ALONE) -> None:
        self._gates = gates
        self._watch = watch
        self._ranks = ranks

    def __call__(self, done: Done) -> bool:
        """Check when it is time."""
        return self._watch.due(done.step) and self._ranks.said(self._watch.check_gates(done.step, self._gates))


class Watching(StopRule):
    """Observer that looks at the mask as `StopRule` does, and never ends the search."""

    def __call__(self, done: Done) -> bool:
        """Check when it is time."""
        super().__call__(done)
        return False


class Recorder:
    """Observer that writes the coefficients after every optimizer step."""

    def __init__(self, writer: HistoryWriter) -> None:
        self._writer = writer

    def __call__(self, done: Done) -> bool:
        """Take one row."""
        self._writer.record()
        return False

    def flush(self) -> None:
        """Write what waits."""
        self._writer.flush()


def l1_pair(l1: float | tuple[float, float]) -> tuple[float, float]:
    """Lambda for heads and for neurons.

    Raises:
        Refused: One of them is negative or not a number.
    """
    pair = (l1, l1) if isinstance(l1, (int, float)) else tuple(l1)
    if len(pair) != 2 or not all(0 <= value < float("inf") for value in pair):
        raise Refused(f"l1 must be a number of at least 0, or one for heads and one for neurons, got {l1!r}.")
    return pair[0], pair[1]


def _refuse_narrow(model: nn.Module) -> None:
    """Weights in which an optimizer's steps are lost; bfloat16 ones are let go, with a warning.

    Raises:
        Refused: They are float16.
    """
    kinds = {parameter.dtype for parameter in model.parameters()}
    if torch.float16 in kinds:
        raise Refused("the model's weights are float16, too narrow for an optimizer to change; use model.float().")
    if torch.bfloat16 in kinds:
        log.warning(
            "the model's weights are bfloat16, in which most changes by an optimizer are rounded away: load it in "
            "float32 (dtype=torch.float32), and precision='auto' computes in bf16 where the hardware does."
        )


def _endless(batches: Iterable[Mapping[str, Tensor]]) -> Iterator[Batch]:
    """Go round a container; go once through an iterator."""
    if isinstance(batches, Mapping):
        raise Refused("batches is a single batch; put it in a list.")
    if isinstance(batches, Iterator):
        yield from map(_tensors, batches)
        return
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield _tensors(batch)
        if empty:
            return


def _tensors(batch: Any) -> Batch:
    """A batch that somebody gave.

    Raises:
        Refused: It is no dict of tensors.
    """
    if not isinstance(batch, Mapping):
        raise Refused(f"every batch must be a dict that the model accepts, got a {type(batch).__name__}.")
    for name, value in batch.items():
        if not isinstance(value, Tensor):
            raise Refused(f"{name!r} of a batch is a {type(value).__name__}, not a tensor; convert it or leave it out.")
    return dict(batch)


def _grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(islice(batches, size)):
        yield group
