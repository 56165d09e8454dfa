"""From the scores of a search to a ticket, alike in fine-tuning and pre-training."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from transformers import AutoModel

from ..anatomy import Anatomy, of
from ..baselines import random_ticket
from ..config.finetune import Drawing, Finetune
from ..tasks.head import load_config
from ..ticket import Scores, Settled, Ticket, draw
from ..ticket.joint import draw_jointly
from ..ticket.settled import CHECKS, Watch
from ..train.steplog import LAST, SCORING, add_line, truncate
from .display import say
from .run import RunFolder


def glimpse(config: Any, cap: int) -> Watch:
    """A watch on the mask of a search for the eye alone: from the first steps on, at a twentieth of its length.

    Args:
        config: Says how much will be drawn.
        cap: Of the search, in optimizer steps.
    """
    said = Drawing if getattr(config, "joint", None) is not None else config  # which a joint ranking does not look at
    amount = {name: getattr(said, name) for name in ("heads", "neurons", "heads_scope", "neurons_scope")}
    return Settled(**amount, every=math.ceil(cap / CHECKS), min_steps=0).watch(cap)


def draw_stage(run: RunFolder[Any], scores: Scores) -> Ticket:
    """Stage 2. Writes `ticket.json`, of several cuts that of the first.

    Args:
        run: The folder.
        scores: To draw from.
    """
    head_price = head_price_of(run.config)
    began = time.perf_counter()
    ticket = draw_ticket(after_cut(run.config, 1), scores, head_price=head_price)
    truncate(run.steps, SCORING, LAST)
    add_line(run.steps, "draw", 1, time.perf_counter() - began)
    ticket.save(run.ticket)  # last: its presence says that the stage is done
    return ticket


def after_cut(config: Any, number: int) -> Any:
    """Drawing settings of one of several cuts: so many equal shares of what goes in all are gone after it.

    Args:
        config: Of a run.
        number: Of the cut; 1 is the first.
    """
    cuts = getattr(config, "cuts", 1)
    if number >= cuts:
        return config
    share = Fraction(number, cuts)

    def part(remove: int | float) -> int | float:
        return math.floor(remove * share + Fraction(1, 2)) if isinstance(remove, int) else float(remove * share)

    less = {name: part(value) for name in ("heads", "neurons", "joint") if (value := getattr(config, name)) is not None}
    return replace(config, **less)


def anatomy_of(config: Finetune) -> Anatomy:
    """Of the model that a run starts from; no weight is read."""
    with torch.device("meta"):
        return of(AutoModel.from_config(load_config(config.model, offline=config.offline)))


def head_price_of(config: Drawing) -> float:
    """What a head of a run's model costs, which a joint ranking needs; 0 where there is none. Reads no weight."""
    return anatomy_of(config).head_price if isinstance(config, Finetune) and config.joint is not None else 0.0


def draw_ticket(config: Drawing, scores: Scores, *, head_price: float) -> Ticket:
    """`draw`, or `draw_jointly`, with a configuration's settings.

    Args:
        config: Says how much goes.
        scores: To draw from.
        head_price: See `head_price_of`.
    """
    if config.joint is not None:
        return draw_jointly(scores, remove=config.joint, head_price=head_price, align=config.align)
    return draw(
        scores,
        heads=config.heads,
        neurons=config.neurons,
        heads_scope=config.heads_scope,
        neurons_scope=config.neurons_scope,
        align=config.align,
    )


def describe(ticket: Ticket) -> None:
    """Print what a ticket keeps."""
    total = ticket.layers * ticket.num_heads, ticket.layers * ticket.num_neurons
    say(
        f"ticket: {ticket.heads_kept} of {total[0]} heads and {ticket.neurons_kept:,} of {total[1]:,} neurons stay; "
        f"neurons by layer {', '.join(str(len(kept)) for kept in ticket.neurons)}"
    )


def stand_in(config: Any, anatomy: Anatomy, *, within: Ticket | None = None) -> Ticket:
    """A random ticket of a run's budget, for what depends on its size alone.

    Worth per FLOP is spread evenly over the heads and over the neurons of every layer, so that a joint ranking removes
    about the same share of both, and of every layer.

    Args:
        config: Of a run; says how much goes.
        anatomy: Of the whole model.
        within: What an earlier cut has kept.

    Raises:
        Refused: As `draw`.
    """
    scores = random_ticket.scores(anatomy, config.seed)
    heads, neurons = (
        tuple(price * (layer.argsort().argsort() + 0.5) / len(layer) for layer in part)
        for part, price in ((scores.heads, anatomy.head_price), (scores.neurons, 1))
    )
    scores = replace(scores, heads=heads, neurons=neurons, within=within)
    return draw_ticket(config, scores, head_price=anatomy.head_price)
