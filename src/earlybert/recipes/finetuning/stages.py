"""The three stages of one run, each resumable, each leaving its result in the run folder."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import nn

from ...anatomy import Refused
from ...config.finetune import Finetune
from ...cost import count, peak_memory, sized, watch_memory
from ...tasks.batches import Batch, shape_of
from ...ticket import Gates, History, Scores, Settled, Ticket, apply, rebind, save
from ...ticket.refit import Refit, refit
from ...ticket.refit import flops as refit_flops
from ...ticket.settled import Watch
from ...ticket.surgery import fold
from ...train import checkpoint
from ...train.engine import build
from ...train.loop import Observer
from ...train.matching import MatchedCost, matching
from ...train.optimizer import adamw
from ...train.schedule import rewarmed
from ...train.search import StopRule, Watching, collect, searching
from ...train.step import EagerStep, to_device
from ...train.steplog import Counts, add_line, truncate
from ..display import say
from ..drawing import glimpse
from ..drive import drive, end_search, profiled, recording, resume
from ..report import write_card
from ..result import Evaluations
from ..run import Run, began_elsewhere, digest
from .bench import SHARED_ORDER, TICKET_ORDER, Bench
from .plan import Plan, plan
from .result import summary


@dataclass
class Begun:
    """What stage 3 trains, and how that differs from the plain loop."""

    model: nn.Module
    order: int
    """Which of the two data orders."""
    optimizer: torch.optim.Optimizer | None = None
    """One that was carried over; a fresh one when None."""
    first: int = 0
    """Optimizer steps that are behind it already."""
    flops: int = 0
    """What preparing it cost, beyond cutting."""
    teacher: nn.Module | None = None
    """Whose hidden states the first steps match (`match`)."""
    static: bool = True
    """Whether every step is the same computation on plain weights, as a CUDA graph needs it."""
    watch: Callable[[int], tuple[Observer, Counts] | None] = lambda first: None
    """Given the optimizer steps done: an observer of every step, and what counts the FLOPs in place of the model."""
    finish: Callable[[], None] = lambda: None
    """Called on the trained model before it is saved."""
    later: list[tuple[int, Callable[[nn.Module, torch.optim.Optimizer], nn.Module]]] = field(default_factory=list)
    """Optimizer steps after which the model is cut again, and what does it and takes the optimizer along."""
    state: Callable[[], dict[str, Any]] = dict
    """What a checkpoint has to remember besides. JSON values only."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of `metrics.json`. JSON values only."""


Begin = Callable[[Bench, Run, nn.Module], Begun]
"""Makes of theta_0 what is trained."""


@dataclass(frozen=True)
class Objective:
    """What a search trains on instead of the task."""

    model: nn.Module
    batches: Callable[[int], Iterable[Sequence[Batch]]]
    """Optimizer steps done to the micro-batches of each step from there on."""
    cost: Counts


def search_stage(bench: Bench, run: Run, *, keep_weights: bool = False, objective: Objective | None = None) -> Scores:
    """Stage 1. Writes `history.bin`, `steps.jsonl` and at its end `scores.safetensors`.

    Args:
        bench: With the data and the settings.
        run: The folder.
        keep_weights: Also leave the end of the search in `searched.safetensors`.
        objective: Search on masked-language modelling; on the task when None.
    """
    ranks = bench.ranks
    if ranks.said(ranks.main and run.scores.exists()):
        return Scores.load(run.scores)
    config, lengths = bench.config, plan(bench)
    model = bench.theta_0()
    theta_0 = digest(model)
    ranks.agree(theta_0, "weights to begin with")
    batches = bench.stream(SHARED_ORDER).starting_at
    if objective is not None:
        model, batches = objective.model, objective.batches
    torch.manual_seed(config.seed)
    with searching(
        model,
        lr=lengths.search_lr,
        gate_lr=config.gate_lr,
        l1=(config.l1_heads, config.l1_neurons),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        precision=bench.precision,
        engine=bench.engine,
        exact=config.exact,
        compile=config.compile,
        masked=objective is not None,
        sample=lambda: next(iter(batches(0))),
        ranks=ranks,
    ) as step:
        gates = step.gates
        assert gates is not None
        first = resume(run, "search", step, ranks=ranks)
        watch = _watch(config, lengths, run, first)
        ranks.wait()  # all have read the history of a search that goes on
        over = watch is not None and watch.settled
        shown = watch or glimpse(config, lengths.search)
        last = StopRule(gates, watch, ranks) if watch else Watching(gates, shown)
        with recording(run, gates, first=first, ranks=ranks) as recorders:
            done = drive(
                run,
                "search",
                step,
                batches(first),
                title="search",
                first=first,
                steps=first if over else lengths.search,
                lr=lengths.search_lr,
                schedule=lengths.search_schedule,
                observers=[*recorders, last],
                before_checkpoint=[each.flush for each in recorders],
                cost=objective.cost if objective else None,
                state=bench.state,
                ranks=ranks,
                distances=shown.distances,
            )
        scores = collect(step, done, cap=lengths.search, watch=watch, seed=config.seed)
        if keep_weights or config.weights == "keep" or config.match:
            parts = {"model": model, "optimizer": step.optimizer, "gates": gates}
            checkpoint.save(run.searched, **parts, state={"step": done}, write=ranks.main)
        scores = end_search(run, scores, {"theta_0": theta_0, "text": bench.text}, ranks)
        profiled(run, "search", step, batches(0), ranks=ranks)
    return scores


def train_stage(bench: Bench, run: Run, begin: Begin) -> tuple[nn.Module, dict[str, Any]]:
    """Stage 3, or a dense run. Writes `model/`, `predictions.safetensors` and `metrics.json`.

    Args:
        bench: With the data and the settings.
        run: The folder.
        begin: Makes of theta_0 what is trained.

    Returns:
        The trained model and the metrics; nothing of these in a process that is not the first.
    """
    config, lengths, ranks = bench.config, plan(bench), bench.ranks
    theta_0 = bench.theta_0()
    before = sized(theta_0)
    began = time.perf_counter()
    begun = begin(bench, run, theta_0)
    cutting = time.perf_counter() - began
    del theta_0
    model, optimizer = begun.model, begun.optimizer
    ranks.spread([*model.parameters(), *model.buffers()])  # of what was refitted, the last bits may differ
    if optimizer is None:
        torch.manual_seed(config.seed)
        optimizer = adamw(model, lr=lengths.train_lr, weight_decay=config.weight_decay)
    step = _step(bench, model, optimizer, static=begun.static and begun.teacher is None)
    watch_memory(bench.device)
    resumed = resume(run, "train", step, ranks=ranks)
    if ranks.main and run.ticket.exists() and not resumed:
        truncate(run.steps, "draw", 1)
        add_line(run.steps, "draw", 2, cutting, begun.flops)
    first = max(begun.first, resumed)
    if ranks.main:
        run.write_config()  # not before: a start that is refused changes nothing
    step = _take_steps(bench, run, begun, step, first)
    peak = peak_memory(bench.device)  # before there are copies for the profile
    profiled(run, "train", step, bench.stream(begun.order).starting_at(0), ranks=ranks)
    model = begun.model.eval()
    begun.finish()
    if not ranks.main:
        return model, {}
    save(model, run.model, tokenizer=bench.tokenizer)
    metrics = summary(bench, run, model, before=before, engine=type(step).__name__, peak_memory=peak)
    metrics |= begun.about
    run.write_metrics(metrics)
    close(run)
    return model, metrics


def _take_steps(bench: Bench, run: Run, begun: Begun, step: EagerStep, first: int) -> EagerStep:
    """All steps of stage 3 behind `first`, those that match a teacher before the others; what took the last ones.

    `begun.model` is the model they end with.
    """
    config, lengths = bench.config, plan(bench)
    observers: list[Observer] = []
    if config.eval_every and bench.ranks.main:
        observers.append(Evaluations(run, lambda: bench.score(begun.model), first))
    watched = begun.watch(first)
    stream = bench.stream(begun.order)

    def go(steps: int, cost: Counts | None) -> int:
        return drive(
            run,
            "train",
            step,
            stream.starting_at(first),
            title=f"train {config.method}",
            first=first,
            steps=steps,
            lr=lengths.train_lr,
            schedule=rewarmed(lengths.train_schedule, begun.first, config.rewarm),
            observers=[*observers, *([watched[0]] if watched else [])],
            cost=cost,
            state=lambda: {**bench.state(), **begun.state()},
            ranks=bench.ranks,
            end=lengths.train,
        )

    until = begun.first + matched_steps(config, lengths.train - begun.first) if begun.teacher else 0
    while True:
        stop = begun.later[0][0] if begun.later else lengths.train
        if begun.teacher is not None and first < until:
            cost = MatchedCost(count(begun.model), count(begun.teacher))
            with matching(step, begun.teacher, config.match):
                first = go(min(until, stop), cost)
        if begun.teacher is not None and first >= until:
            begun.teacher = None  # makes room
            step = _step(bench, begun.model, step.optimizer, static=begun.static)
        if begun.teacher is None or first >= stop:
            first = go(stop, watched[1] if watched else None)
        if first >= stop:
            if not begun.later:
                return step
            _, cut_again = begun.later.pop(0)
            begun.model = cut_again(begun.model, step.optimizer)
            static = begun.static and begun.teacher is None
            step = _step(bench, begun.model, step.optimizer, static=static)


def matched_steps(config: Finetune, steps: int) -> int:
    """How many of a ticket's steps match hidden states, its first ones."""
    return round(config.match_share * steps) if config.match else 0


def _step(bench: Bench, model: nn.Module, optimizer: torch.optim.Optimizer, *, static: bool) -> EagerStep:
    """What takes the steps of stage 3, with a run's settings."""
    config = bench.config
    return build(
        bench.engine,
        model,
        optimizer,
        exact=config.exact,
        compile=config.compile,
        static=static,
        sample=bench.sample,
        precision=bench.precision,
        max_grad_norm=config.max_grad_norm,
        ranks=bench.ranks,
    )


def close(run: Run) -> None:
    """Behind the end of a run: write the model's card, and remove what only going on needs."""
    write_card(run)
    for leftover in (run.checkpoint, run.searched):
        leftover.unlink(missing_ok=True)


def begin_dense(bench: Bench, run: Run, theta_0: nn.Module) -> Begun:
    """The full model."""
    return Begun(theta_0, SHARED_ORDER)


def begin_ticket(bench: Bench, run: Run, theta_0: nn.Module) -> Begun:
    """The ticket of the run: of theta_0 (`weights: reset`, Sec. 3.2), or of the searched weights (`keep`)."""
    config, ticket = bench.config, Ticket.load(run.ticket)
    teacher = None
    if config.weights == "keep":
        optimizer, order = searched(bench, run, theta_0), SHARED_ORDER
        first = checkpoint.peek(run.searched)["step"]
    else:
        _refuse_other_start(run, theta_0)
        optimizer, first, order = None, 0, TICKET_ORDER
        if config.match:
            teacher = copy.deepcopy(theta_0)
            searched(bench, run, teacher)
    if config.refit == 0 and optimizer is None:
        return Begun(apply(theta_0, ticket, inplace=True), order, teacher=teacher)
    small = apply(theta_0, ticket)
    flops = 0
    if config.refit and not run.training:  # a checkpoint has the refitted weights already
        flops = refit_next(bench, small, theta_0, order, first)
    if optimizer is not None:
        rebind(optimizer, theta_0, small)
        teacher = theta_0 if config.match else None
    return Begun(small, order, optimizer, first, flops, teacher)


def refit_next(bench: Bench, small: nn.Module, dense: nn.Module, order: int, first: int) -> int:
    """Refit on the batches that come next, and say what came of it; the FLOPs it took."""
    results, flops = refitted(small, dense, next_batches(bench, order, first))
    kept = sum(result.after < result.before for result in results)
    before, after = (sum(getattr(result, which) for result in results) / len(results) for which in ("before", "after"))
    say(f"refit: {kept} of {len(results)} linears; mean relative error {before:.3f} -> {after:.3f}")
    return flops


def next_batches(bench: Bench, order: int, first: int) -> list[Batch]:
    """The `refit` micro-batches behind step `first` of an order, on the device."""
    steps = bench.stream(order).starting_at(first)
    micro_batches = islice((batch for step in steps for batch in step), bench.config.refit)
    return [to_device(batch, bench.device) for batch in micro_batches]


def refitted(small: nn.Module, dense: nn.Module, batches: Sequence[Batch]) -> tuple[list[Refit], int]:
    """`refit`, and the FLOPs it took."""
    results = refit(small, dense, batches)
    shapes = [shape_of(batch) for batch in batches]
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    together = [(sum(rows for rows, _ in shapes), max(length for _, length in shapes))]
    return results, refit_flops(small, count(small).forward(together), count(dense).forward(shapes), tokens)


def _watch(config: Any, lengths: Plan, run: Run, first: int) -> Watch | None:
    """The stop rule, brought up to where a resumed search is; None when the search has a fixed length."""
    if config.recipe != "default" or config.search_steps is not None:
        return None
    rule = Settled(
        heads=config.heads,
        neurons=config.neurons,
        heads_scope=config.heads_scope,
        neurons_scope=config.neurons_scope,
        window=config.settle_window,
        threshold=config.settle_threshold,
        min_steps=max(config.settle_min_steps, lengths.warmup),
    )
    watch = rule.watch(lengths.search)
    if first:
        history = History(run.history)
        for done in filter(watch.due, range(1, first + 1)):
            watch.check(done, history.coefficients(done, "heads"), history.coefficients(done, "neurons"))
    return watch


def _refuse_other_start(run: Run, theta_0: nn.Module) -> None:
    if began_elsewhere(run, theta_0):
        raise Refused(
            f"the model or its head is not the one that run {run.path} searched on (its weights differ), so it "
            "cannot be reset to its start; search again."
        )


def searched(bench: Bench, run: Run, model: nn.Module) -> torch.optim.Optimizer:
    """Bring a model to the end of the search, coefficients folded in, in place; its optimizer there."""
    if not run.searched.exists():
        raise Refused(
            f"run {run.path} has no searched weights: its search did not keep them, or it was drawn from a finished "
            "run, which has them no more; search again with --weights keep or --match 1, or train with --match 0."
        )
    config, gates = bench.config, Gates(model)
    rate = plan(bench).train_lr
    optimizer = adamw(model, lr=rate, weight_decay=config.weight_decay, gates=gates, gate_lr=config.gate_lr)
    checkpoint.load(run.searched, model=model, optimizer=optimizer, gates=gates)
    fold(model, Scores.load(run.scores))
    return optimizer
