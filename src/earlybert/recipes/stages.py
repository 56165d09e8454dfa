"""The three stages of one run, each resumable, each leaving its result in the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from ..anatomy import Refused, of
from ..cost import count
from ..tasks.head import load_config
from ..ticket import Gates, History, HistoryWriter, Scores, Settled, Ticket, apply, draw, rebind, save
from ..ticket.settled import Watch
from ..train import checkpoint
from ..train.clock import Clock
from ..train.engine import build
from ..train.interrupt import Interrupt
from ..train.loop import Done, Observer, loop, refuse_infinite
from ..train.optimizer import adamw
from ..train.schedule import Schedule, linear
from ..train.search import Recorder, StopRule, collect, searching
from ..train.step import EagerStep
from ..train.steplog import StepLog, add_line, truncate
from .bench import SHARED_ORDER, TICKET_ORDER, Bench, digest
from .progress import Bar
from .result import Evaluations, summary
from .run import Run

FEWEST_SEARCH_STEPS = 100
"""Cap of a search in the default recipe, where 0.2 epoch is less; but never longer than the dense run."""
SETTLED_SOONEST = 60
"""Steps before which a mask is hardly better than random (docs/stopping.md)."""


@dataclass(frozen=True)
class Plan:
    """Lengths and schedules of a run, in optimizer steps."""

    search: int
    """Cap of the search."""
    train: int
    """Steps of stage 3; with `weights: keep` those of the search are among them."""
    dense: int
    """Steps of the dense run."""
    warmup: int
    """Steps over which the search's learning rate rises; no mask is judged before."""
    search_lr: float
    search_schedule: Schedule
    train_lr: float
    train_schedule: Schedule


def plan(bench: Bench) -> Plan:
    """Turn epochs into steps and decide the schedules.

    The search follows the dense run's schedule, of which it is a prefix. With `weights: keep` there
    is one schedule over search and training together.
    """
    config = bench.config
    per_epoch = bench.stream(SHARED_ORDER).steps_per_epoch
    dense = config.dense_steps or max(1, round(config.dense_epochs * per_epoch))
    train = dense if config.method == "dense" else max(1, round(config.epochs * per_epoch))
    cap = config.search_steps or max(1, round(config.search_epochs * per_epoch))
    if config.search_steps is None and config.recipe == "default":
        cap = min(max(cap, FEWEST_SEARCH_STEPS), dense)
    keep = config.method == "ticket" and config.weights == "keep"
    if keep and cap >= train:
        raise Refused(
            f"with weights=keep the search is part of the {train} training steps, but it may take {cap}; "
            "train longer or search less."
        )
    train_lr = config.dense_lr if config.method == "dense" else config.lr
    train_schedule = linear(train, round(config.warmup * train))
    followed = train if keep else max(dense, cap)  # a search longer than the dense run gets a schedule as long
    warmup = round(config.warmup * followed)
    return Plan(
        search=cap,
        train=train,
        dense=dense,
        warmup=warmup,
        search_lr=train_lr if keep else config.dense_lr,
        search_schedule=linear(followed, warmup),
        train_lr=train_lr,
        train_schedule=train_schedule,
    )


def advice(bench: Bench) -> list[str]:
    """What a person should know of this plan before it runs."""
    config, lengths = bench.config, plan(bench)
    notes: list[str] = []
    if config.method == "ticket":
        if lengths.search < SETTLED_SOONEST:
            notes.append(
                f"the search is only {lengths.search} steps: a mask is hardly better than random before about "
                f"{SETTLED_SOONEST} (docs/stopping.md)."
            )
        if lengths.search > lengths.dense / 4 and config.weights == "reset":
            notes.append(
                f"the search may take {lengths.search} steps and the whole dense run takes {lengths.dense}: on so "
                "little data a ticket saves little; --method dense with fewer epochs is the better advice."
            )
        if isinstance(config.neurons, int) and 0 < config.neurons <= 100 and config.neurons_scope == "global":
            notes.append(
                f"--neurons {config.neurons} removes {config.neurons} of all neurons; "
                f"{config.neurons} % would be {config.neurons / 100:g}."
            )
    if lengths.train < 20:
        notes.append(f"{lengths.train} training steps are very few; expect a model that has learned little.")
    return notes


def check_drawing(bench: Bench) -> None:
    """Draw from made-up scores, so that an impossible budget is refused before the search.

    Raises:
        Refused: As `draw`.
    """
    with torch.device("meta"):
        anatomy = of(AutoModel.from_config(load_config(bench.config.model, offline=bench.config.offline)))
    layers = len(anatomy.layers)
    blank = Scores(
        tuple(torch.ones(layers, anatomy.num_heads)),
        tuple(torch.ones(layers, anatomy.num_neurons)),
        anatomy.model_type,
    )
    draw_ticket(bench.config, blank)


def search_stage(bench: Bench, run: Run) -> Scores:
    """Stage 1. Writes `history.bin`, `steps.jsonl` and at its end `scores.safetensors`."""
    if run.scores.exists():
        return Scores.load(run.scores)
    config, lengths = bench.config, plan(bench)
    model = bench.theta_0()
    theta_0 = digest(model)
    torch.manual_seed(config.seed)
    with searching(
        model,
        lr=lengths.search_lr,
        gate_lr=config.gate_lr,
        l1=(config.l1_heads, config.l1_neurons),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        precision=bench.precision,
        engine=config.engine,
        exact=config.exact,
        compile=config.compile,
    ) as step:
        gates = step.gates
        assert gates is not None
        first = _resume(run, "search", step)
        watch = _watch(config, lengths, run, first)
        over = watch is not None and watch.settled
        writer = HistoryWriter(run.history, gates, rows=first)
        observers: list[Observer] = [Recorder(writer)]
        if watch is not None:
            observers.append(StopRule(gates, watch))
        done = _drive(
            bench,
            run,
            "search",
            step,
            first=first,
            steps=first if over else lengths.search,
            lr=lengths.search_lr,
            schedule=lengths.search_schedule,
            order=SHARED_ORDER,
            observers=observers,
            before_checkpoint=[writer.flush],
        )
        writer.close()
        scores = collect(step, done, cap=lengths.search, watch=watch, seed=config.seed)
        scores = replace(scores, info={**scores.info, "theta_0": theta_0})
        if config.weights == "keep":
            checkpoint.save(run.searched, model=model, optimizer=step.optimizer, gates=gates, state={"step": done})
    scores.save(run.scores)  # last: its presence says that the stage is done
    run.checkpoint.unlink(missing_ok=True)
    return scores


def draw_stage(run: Run, scores: Scores) -> Ticket:
    """Stage 2. Writes `ticket.json`."""
    began = time.perf_counter()
    ticket = draw_ticket(run.config, scores)
    ticket.save(run.ticket)
    truncate(run.steps, "search", scores.steps)
    add_line(run.steps, "draw", 1, time.perf_counter() - began)
    return ticket


def draw_ticket(config: Any, scores: Scores) -> Ticket:
    """`draw` with a configuration's settings."""
    return draw(
        scores,
        heads=config.heads,
        neurons=config.neurons,
        heads_scope=config.heads_scope,
        neurons_scope=config.neurons_scope,
        align=config.align,
    )


def train_stage(bench: Bench, run: Run) -> tuple[nn.Module, dict[str, Any]]:
    """Stage 3, or a dense run. Writes `model/`, `predictions.safetensors` and `metrics.json`.

    Returns:
        The trained model and the metrics.
    """
    config, lengths = bench.config, plan(bench)
    theta_0 = bench.theta_0()
    before = count(theta_0).parameters
    began = time.perf_counter()
    if config.method == "dense":
        model, optimizer, first, order = theta_0, None, 0, SHARED_ORDER
    elif config.weights == "keep":
        model, optimizer, first = _go_on(bench, run, theta_0, lengths)
        order = SHARED_ORDER
    else:
        model, optimizer, first, order = _start_over(run, theta_0), None, 0, TICKET_ORDER
    cutting = time.perf_counter() - began
    del theta_0
    if optimizer is None:
        torch.manual_seed(config.seed)
        optimizer = adamw(model, lr=lengths.train_lr, weight_decay=config.weight_decay)
    step = build(
        config.engine,
        model,
        optimizer,
        exact=config.exact,
        compile=config.compile,
        precision=bench.precision,
        max_grad_norm=config.max_grad_norm,
    )
    resumed = _resume(run, "train", step)
    if config.method == "ticket" and not resumed:
        truncate(run.steps, "draw", 1)
        add_line(run.steps, "draw", 2, cutting)
    first = max(first, resumed)
    evaluations: list[Observer] = [Evaluations(bench, run, model, first)] if config.eval_every else []
    run.write_config()  # not before: a start that is refused changes nothing
    _drive(
        bench,
        run,
        "train",
        step,
        first=first,
        steps=lengths.train,
        lr=lengths.train_lr,
        schedule=lengths.train_schedule,
        order=order,
        observers=evaluations,
    )
    model.eval()
    save(model, run.model, tokenizer=bench.tokenizer)
    metrics = summary(bench, run, model, parameters_before=before, engine=type(step).__name__)
    run.write_metrics(metrics)
    for leftover in (run.checkpoint, run.searched):
        leftover.unlink(missing_ok=True)
    return model, metrics


def _drive(
    bench: Bench,
    run: Run,
    stage: str,
    step: EagerStep,
    *,
    first: int,
    steps: int,
    lr: float,
    schedule: Schedule,
    order: int,
    observers: Sequence[Observer],
    before_checkpoint: Sequence[Callable[[], None]] = (),
) -> int:
    """Run the loop of a stage with its log, its checkpoints and its bar."""
    config = bench.config
    clock = Clock(step.device)
    log = StepLog(
        run.steps, stage, cost=count(step.model), step=step, clock=clock, first=first, lr=lr, every=config.log_every
    )
    step.model.train()

    def write_checkpoint(done: Done) -> bool:
        due = config.checkpoint_every and done.step % config.checkpoint_every == 0 and done.step < steps
        if due or interrupt.asked:
            # What is not finite stops the run here, before a good checkpoint is replaced.
            for flush in (log.flush, *before_checkpoint):
                flush()
            refuse_infinite(step.model, done.step)
            state = {"stage": stage, "step": done.step}
            checkpoint.save(run.checkpoint, model=step.model, optimizer=step.optimizer, gates=step.gates, state=state)
        if interrupt.asked:
            raise KeyboardInterrupt
        return False

    title = stage if stage == "search" else f"train {config.method}"
    with Interrupt() as interrupt, Bar(title, first, steps, log) as bar:
        done = loop(
            step,
            bench.stream(order).starting_at(first),
            first=first,
            steps=steps,
            schedule=schedule,
            clock=clock,
            observers=[log, *observers, write_checkpoint, bar],
        )
        log.flush()
    refuse_infinite(step.model, done)
    return done


def _resume(run: Run, stage: str, step: EagerStep) -> int:
    """Put the stage's last checkpoint back, if there is one; optimizer steps done."""
    first = 0
    if run.checkpoint.exists() and checkpoint.peek(run.checkpoint).get("stage") == stage:
        first = checkpoint.load(run.checkpoint, model=step.model, optimizer=step.optimizer, gates=step.gates)["step"]
        step.refresh()
    truncate(run.steps, stage, first)
    return first


def _watch(config: Any, lengths: Plan, run: Run, first: int) -> Watch | None:
    """The stop rule, brought up to where a resumed search is; None when the search has a fixed length."""
    if config.recipe == "paper" or config.search_steps is not None:
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


def _start_over(run: Run, theta_0: nn.Module) -> nn.Module:
    """`weights: reset`: the ticket of exactly theta_0 (Sec. 3.2)."""
    expected = Scores.load(run.scores).info.get("theta_0")
    if expected != digest(theta_0):
        raise Refused(
            f"the model or its head is not the one that run {run.path} searched on (its weights differ), so it "
            "cannot be reset to its start; search again."
        )
    return apply(theta_0, Ticket.load(run.ticket), inplace=True)


def _go_on(bench: Bench, run: Run, model: nn.Module, lengths: Plan) -> tuple[nn.Module, torch.optim.Optimizer, int]:
    """`weights: keep`: the ticket of the searched weights, coefficients folded in, moments sliced."""
    if not run.searched.exists():
        raise Refused(f"run {run.path} did not keep its searched weights; search again with --weights keep.")
    config, scores = bench.config, Scores.load(run.scores)
    gates = Gates(model)
    optimizer = adamw(model, lr=lengths.train_lr, weight_decay=config.weight_decay, gates=gates, gate_lr=config.gate_lr)
    done = checkpoint.load(run.searched, model=model, optimizer=optimizer, gates=gates)["step"]
    small = apply(model, Ticket.load(run.ticket), weights=replace(scores, weights=model.state_dict()))
    rebind(optimizer, model, small)
    return small, optimizer, done
