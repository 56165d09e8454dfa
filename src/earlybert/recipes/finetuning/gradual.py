"""A ticket cut out in several steps, with training between them (`cuts`)."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import nn

from ...ticket import Ticket, apply, rebind
from ...train import checkpoint
from ...train.steplog import SCORING, add_line, forget
from ..display import say
from ..drawing import after_cut, draw_ticket, head_price_of
from ..run import Run
from .bench import SHARED_ORDER, Bench
from .plan import later_cuts, plan
from .scoring import Scored, sensitivity
from .stages import Begin, Begun, begin_ticket, refit_next


def begin_gradually(kind: Scored) -> Begin:
    """As `begin_ticket`; the run's ticket is then that of the first cut, and the others come while it is trained.

    Args:
        kind: What the scores of every cut are.
    """

    def begin(bench: Bench, run: Run, theta_0: nn.Module) -> Begun:
        if bench.config.cuts == 1:
            return begin_ticket(bench, run, theta_0)
        state = checkpoint.peek(run.checkpoint) if run.training else {}
        if "ticket" in state:  # what the checkpoint holds was cut to; the file is written behind it
            Ticket.from_dict(state["ticket"], f"the ticket in {run.checkpoint}").save(run.ticket)
        now = {"ticket": Ticket.load(run.ticket).to_dict(), "cuts": state.get("cuts", 1)}
        begun = begin_ticket(bench, run, theta_0)
        steps = later_cuts(begun.first, plan(bench).train, bench.config.cuts)
        begun.later = [
            (step, partial(_cut_again, bench, run, kind, now, number, step))
            for number, step in enumerate(steps, start=2)
            if number > now["cuts"]
        ]
        begun.state = now.copy
        begun.about = {"cut_after": [begun.first, *steps]}
        return begun

    return begin


def _cut_again(
    bench: Bench,
    run: Run,
    kind: Scored,
    now: dict[str, Any],
    number: int,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> nn.Module:
    """Score, draw, cut and refit the model of a run in training; the optimizer follows. Leaves a checkpoint."""
    config = bench.config
    scores, lines = sensitivity(bench, model, kind, step, SHARED_ORDER)
    began, flops = time.perf_counter(), 0
    ticket = draw_ticket(after_cut(config, number), scores, head_price=head_price_of(config))
    small = apply(model, ticket)
    if config.refit:
        flops = refit_next(bench, small, model, SHARED_ORDER, step)
    rebind(optimizer, model, small)
    seconds = time.perf_counter() - began
    forget(run.steps, SCORING, number)  # of a run that was stopped between here and the checkpoint
    forget(run.steps, "draw", number + 1)
    add_line(run.steps, SCORING, number, sum(each for each, _ in lines), sum(each for _, each in lines))
    add_line(run.steps, "draw", number + 1, seconds, flops)
    now |= {"ticket": ticket.to_dict(), "cuts": number}
    state = {"stage": "train", "step": step, "text": bench.text, **now}
    checkpoint.save(run.checkpoint, model=small, optimizer=optimizer, state=state)
    ticket.save(run.ticket)  # behind the checkpoint: see `begin_gradually`
    say(
        f"cut {number} of {config.cuts} after {step} steps: {ticket.heads_kept} heads and {ticket.neurons_kept:,} "
        "neurons stay"
    )
    return small
