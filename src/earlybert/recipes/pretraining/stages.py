"""Search and training of a pre-training run, each resumable, each leaving its result in the run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import nn

from ...anatomy import Refused, of
from ...baselines import random_ticket
from ...cost import Size, masked, peak_memory, sized, watch_memory
from ...data.ahead import ahead
from ...ticket import Scores, Ticket, apply, save
from ...train import checkpoint
from ...train.budget import Budget, Pace, Stopwatch
from ...train.engine import build
from ...train.lamb import lamb
from ...train.loop import Observer, refuse_infinite
from ...train.schedule import at
from ...train.search import Watching, collect, searching
from ...train.step import EagerStep
from ...train.steplog import LAST, Counts, add_line, truncate
from ..drawing import draw_stage, glimpse
from ..drive import drive, end_search, profiled, recording, resume
from ..progress import Distances
from ..result import Evaluations
from ..run import began_elsewhere, digest
from .bench import SHARED_ORDER, TICKET_ORDER, Bench
from .estimate import number
from .models import Models, whole
from .plan import Leg
from .result import summary
from .run import PretrainRun


def search_stage(bench: Bench, run: PretrainRun) -> Scores:
    """Stage 1, a prefix of the dense run's phase 1. Writes `history.bin` and at its end `scores.safetensors`."""
    ranks = bench.ranks
    if ranks.said(ranks.main and run.scores.exists()):
        return Scores.load(run.scores)
    config, leg, cap = bench.config, bench.plan.dense[0], bench.plan.search
    model = bench.theta_0()
    theta_0 = digest(model)
    cost = masked(model, bench.predictions(leg))
    torch.manual_seed(config.seed)
    with searching(
        model,
        lr=leg.phase.lr,
        gate_lr=config.gate_lr,
        l1=(config.l1_heads, config.l1_neurons),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        precision=bench.precision,
        engine=bench.engine,
        exact=config.exact,
        optimizer=lamb,
        restore=False,
        masked=True,
        sample=bench.sample,
        ranks=ranks,
        shard=bench.device if bench.sharded else None,
    ) as step:
        gates = step.gates
        assert gates is not None
        first = resume(run, "search", step, ranks=ranks)
        watch = Stopwatch(bench.device, _saved(run, first).get("elapsed", 0.0))
        pace = Pace(watch, cap, _seconds(config.minutes), ranks)
        shown = glimpse(config, cap)
        with recording(run, gates, first=first, ranks=ranks) as recorders:
            done = _go(
                bench,
                run,
                "search",
                step,
                leg,
                cost=cost,
                watch=watch,
                searched=0.0,
                order=SHARED_ORDER,
                title="search",
                first=first,
                steps=cap,
                observers=[*recorders, Watching(gates, shown), pace],
                before_checkpoint=[each.flush for each in recorders],
                distances=shown.distances,
            )
        if ranks.said(done < cap or watch.elapsed >= _seconds(config.minutes)):
            raise _too_long(config.minutes, pace.needed, done, cap)
        scores = collect(step, done, cap=cap, watch=None, seed=config.seed)
        about = {"theta_0": theta_0, "elapsed": watch.elapsed, "text": bench.text}
        scores = end_search(run, scores, about, ranks)
        _profiled(bench, run, "search", step, leg, SHARED_ORDER)
    return scores


def _too_long(minutes: float | None, needed: float, done: int, cap: int) -> Refused:
    """A search that leaves nothing of the budget, as far as its first steps tell."""
    return Refused(
        f"the search alone takes about {number(needed / 60)} minutes, by its first {done:,} of {cap:,} steps, and the "
        f"budget is {minutes:g} in all; start a new run with more --minutes or fewer --search-steps."
    )


def ticket_stage(bench: Bench, run: PretrainRun) -> Ticket:
    """Stages 1 and 2, resumable. The first process draws for all, and writes `ticket.json`."""
    ranks, drawn = bench.ranks, None
    if not ranks.said(ranks.main and run.ticket.exists()):
        if bench.config.method == "ticket":
            scores = search_stage(bench, run)
        else:
            scores = random_ticket.scores(of(bench.theta_0()), bench.config.seed)
            if ranks.main:
                scores.save(run.scores)
        drawn = draw_stage(run, scores) if ranks.main else None
    elif ranks.main:
        drawn = Ticket.load(run.ticket)
    return Ticket.from_dict(ranks.said(drawn.to_dict() if drawn else None))


def train_stage(bench: Bench, run: PretrainRun, ticket: Ticket | None) -> dict[str, Any]:
    """Stage 3, or a dense run: all phases. Writes `model/`, `evaluations.jsonl` and `metrics.json`.

    Args:
        bench: With the data and the settings.
        run: The folder.
        ticket: What to train; the full model when None.

    Returns:
        The metrics; nothing in a process that is not the first.
    """
    ranks, legs = bench.ranks, bench.plan.train
    watch = Stopwatch(bench.device, _searched(run))
    model, before, cutting = _beginning(bench, run, ticket)
    costs = [masked(model, bench.predictions(leg)) for leg in legs]
    with watch.paused():  # also in the search the clock begins behind this
        step = _step(bench, model)
    watch_memory(bench.device)
    first = resume(run, "train", step, ranks=ranks)
    if ticket is not None and not first and ranks.main:
        truncate(run.steps, "draw", 1)
        add_line(run.steps, "draw", 2, cutting)
    saved = _saved(run, first)
    if saved:
        watch.set(saved["elapsed"])
    number, begun = _place(bench, saved, first)
    observers = _on_the_way(bench, run, model, ticket, watch, first)
    while number < len(legs):
        leg = legs[number]
        first = _go(
            bench,
            run,
            "train",
            step,
            leg,
            cost=costs[number],
            watch=watch,
            searched=_searched(run),
            order=_order(ticket),
            title=f"phase {number + 1}",
            first=first,
            begun=begun,
            steps=begun + leg.phase.steps,
            observers=observers,
        )
        number, begun = number + 1, first
        _keep(bench, run, step, {"phase": number, "begun": begun, "elapsed": watch.elapsed})
    elapsed, peak = watch.elapsed, peak_memory(bench.device)
    _profiled(bench, run, "train", step, legs[0], _order(ticket))
    return _end(bench, run, step, ticket, before=before, elapsed=elapsed, peak=peak)


def _keep(bench: Bench, run: PretrainRun, step: EagerStep, about: dict[str, Any]) -> None:
    """A checkpoint behind a phase: what comes then is not steps, and may be stopped, too."""
    if bench.config.checkpoint_every:
        refuse_infinite(step.model, about["begun"])
        state = {"stage": "train", "step": about["begun"], "text": bench.text, **about}
        checkpoint.save(run.checkpoint, model=step.model, optimizer=step.optimizer, state=state, write=bench.ranks.main)


def _order(ticket: Ticket | None) -> int:
    """Which of the two data orders the training has."""
    return SHARED_ORDER if ticket is None else TICKET_ORDER


def _beginning(bench: Bench, run: PretrainRun, ticket: Ticket | None) -> tuple[nn.Module, Size, float]:
    """What is trained, the size of the full model, and seconds that cutting took."""
    model = bench.theta_0()
    before, began = sized(model), time.perf_counter()
    if ticket is not None:
        _refuse_other_start(run, model)
        model = apply(model, ticket, inplace=True)
    return model, before, time.perf_counter() - began


def _step(bench: Bench, model: nn.Module) -> EagerStep:
    """What takes the steps of the training, with random numbers from the run's seed on."""
    config = bench.config
    torch.manual_seed(config.seed)
    return build(
        bench.engine,
        model,
        lamb(model, lr=bench.plan.train[0].phase.lr, weight_decay=config.weight_decay),
        exact=config.exact,
        masked=True,
        sample=bench.sample,
        ranks=bench.ranks,
        shard=bench.device if bench.sharded else None,
        precision=bench.precision,
        max_grad_norm=config.max_grad_norm,
    )


def _on_the_way(
    bench: Bench, run: PretrainRun, model: nn.Module, ticket: Ticket | None, watch: Stopwatch, first: int
) -> list[Observer]:
    """What is scored and written between the steps."""
    observers: list[Observer] = []
    if bench.config.eval_every and (bench.ranks.main or bench.sharded):
        observers += [Evaluations(run, lambda: _score(bench, model, watch), first, write=bench.ranks.main)]
    if bench.config.save_every:
        last = bench.plan.steps if bench.config.minutes is None else 0
        observers += [Models(bench, run, model, ticket, last)]
    return observers


def _end(
    bench: Bench,
    run: PretrainRun,
    step: EagerStep,
    ticket: Ticket | None,
    *,
    before: Size,
    elapsed: float,
    peak: int | None,
) -> dict[str, Any]:
    """Save the trained model, score it, and write down what the run came to; the metrics, as `train_stage`."""
    ranks, model = bench.ranks, step.model
    found = whole(bench, model, ticket)
    if ranks.main:
        found.eval()
        save(found, run.model, tokenizer=bench.corpus.tokenizer)
    scores = [bench.score(model, leg) for leg in bench.plan.train] if ranks.main or bench.sharded else []
    if not ranks.main:
        return {}
    engine = type(step).__name__
    metrics = summary(bench, run, found, scores=scores, before=before, engine=engine, elapsed=elapsed, peak=peak)
    run.write_metrics(metrics)
    run.checkpoint.unlink(missing_ok=True)
    return metrics


def _go(
    bench: Bench,
    run: PretrainRun,
    stage: str,
    step: EagerStep,
    leg: Leg,
    *,
    cost: Counts,
    watch: Stopwatch,
    searched: float,
    order: int,
    title: str,
    first: int,
    steps: int,
    observers: Sequence[Observer],
    begun: int = 0,
    before_checkpoint: Sequence[Callable[[], None]] = (),
    distances: Distances = (),
) -> int:
    """One phase, or the search, from optimizer step `first` on; `begun` of them came before the phase."""
    phase = leg.phase
    for group in step.optimizer.param_groups:
        if group["name"] != "coefficients" or bench.config.gate_lr is None:
            group["base_lr"] = phase.lr
    schedule, observers = (lambda done: phase.schedule(done - begun)), [*observers]
    left: Callable[[], float] | None = None
    if bench.config.minutes is not None:
        begin, end = _window(bench, leg, searched)
        budget = Budget(watch, begin, end, phase.warmup, bench.ranks)
        schedule, observers = budget.factor, [*observers, budget.over]
        if stage != "search":
            steps, left = LAST, lambda: end - watch.elapsed
    with closing(ahead(bench.stream(leg, order).starting_at(first - begun), depth=2)) as batches:
        return drive(
            run,
            stage,
            step,
            batches,
            title=title,
            first=first,
            steps=steps,
            lr=phase.lr,
            schedule=schedule,
            observers=observers,
            before_checkpoint=before_checkpoint,
            cost=cost,
            state=lambda: {"phase": leg.number, "begun": begun, "elapsed": watch.elapsed, "text": bench.text},
            ranks=bench.ranks,
            distances=distances,
            left=left,
        )


def _profiled(bench: Bench, run: PretrainRun, stage: str, step: EagerStep, leg: Leg, order: int) -> None:
    """Take some steps of a stage that is over apart, off the clock of the run, every process its own.

    The first process writes what it found.
    """
    with closing(ahead(bench.stream(leg, order).starting_at(0), depth=2)) as batches:
        profiled(run, stage, step, batches, ranks=bench.ranks)


def _seconds(minutes: float | None) -> float:
    """Of a budget; without one there is no end."""
    return math.inf if minutes is None else 60 * minutes


def _window(bench: Bench, leg: Leg, searched: float) -> tuple[float, float]:
    """Seconds on the watch between which a phase lies, when a search took so many of the budget."""
    left = _seconds(bench.config.minutes) - searched
    begin = searched + left * sum(other.share for other in bench.plan.train[: leg.number])
    return begin, begin + left * leg.share


def _saved(run: PretrainRun, first: int) -> dict[str, Any]:
    """What the checkpoint that was just put back remembers; nothing where a stage begins."""
    return checkpoint.peek(run.checkpoint) if first else {}


def _searched(run: PretrainRun) -> float:
    """Seconds that the search took of the run's time."""
    return Scores.load(run.scores).info.get("elapsed", 0.0) if run.scores.exists() else 0.0


def _place(bench: Bench, saved: dict[str, Any], first: int) -> tuple[int, int]:
    """The phase that the next step is in, and optimizer steps before the phase."""
    if bench.config.minutes is not None:
        return saved.get("phase", 0), saved.get("begun", 0)
    number, done = at([leg.phase for leg in bench.plan.train], first)
    return number, first - done


def _score(bench: Bench, model: nn.Module, watch: Stopwatch) -> dict[str, float]:
    """Held-out loss at the first phase's length; the run's clock stands still meanwhile."""
    with watch.paused():
        return {"seconds": watch.elapsed, **bench.score(model, bench.plan.train[0])}


def _refuse_other_start(run: PretrainRun, theta_0: nn.Module) -> None:
    if began_elsewhere(run, theta_0):
        raise Refused(
            f"the random weights are not those that run {run.path} searched on (another version of torch?), so the "
            "ticket cannot be reset to its start; start a new run."
        )
