"""Lengths and schedules of a run, and what a person should know of them before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from ...anatomy import Refused
from ...config.finetune import Drawing
from ...config.methods import METHODS, RIVALS
from ...config.recipe import BUDGET
from ...ticket import Ticket
from ...train.schedule import Schedule, linear
from ..drawing import after_cut, anatomy_of, stand_in
from .bench import SHARED_ORDER, Bench

FEWEST_SEARCH_STEPS = 100
"""Cap of a search in the default recipe, where 0.2 epoch is less; but never longer than the dense run."""
CUT_WITHIN = 0.3
"""Share of the ticket's steps, its first, that later cuts are spread over; the last falls at its end."""
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
    config, kind = bench.config, METHODS[bench.config.method]
    per_epoch = bench.stream(SHARED_ORDER).steps_per_epoch
    dense = config.dense_steps or max(1, round(config.dense_epochs * per_epoch))
    as_dense = kind.dense or config.method in RIVALS
    train = dense if as_dense else max(1, round(config.epochs * per_epoch))
    cap = config.search_steps or max(1, round(config.search_epochs * per_epoch))
    if config.search_steps is None and config.recipe == "default":
        cap = min(max(cap, FEWEST_SEARCH_STEPS), dense)
    keep = not as_dense and config.weights == "keep"
    if keep and cap >= train:
        raise Refused(
            f"with weights=keep the search is part of the {train} training steps, but it may take {cap}; "
            "train longer or search less."
        )
    if keep and len({cap, *later_cuts(cap, train, config.cuts), train}) < config.cuts + 1:
        raise Refused(f"{train - cap} training steps behind the search are too few for {config.cuts} cuts.")
    train_lr = config.dense_lr if kind.dense else config.lr
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


def later_cuts(first: int, train: int, cuts: int) -> list[int]:
    """Optimizer steps after which a ticket is cut again, evenly spread over its first `CUT_WITHIN`.

    Args:
        first: Steps before the first cut.
        train: Steps in all.
        cuts: The first one included.
    """
    return [first + round(CUT_WITHIN * (train - first) * number / (cuts - 1)) for number in range(1, cuts)]


def advice(bench: Bench) -> list[str]:
    """What a person should know of this plan before it runs."""
    config, lengths = bench.config, plan(bench)
    notes: list[str] = []
    if METHODS[config.method].searches:
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
    if config.joint is not None and any(getattr(config, name) != getattr(Drawing, name) for name in BUDGET):
        notes.append(f"joint {config.joint:g} says what goes; heads and neurons are not used to draw.")
    if lengths.train < 20:
        notes.append(f"{lengths.train} training steps are very few; expect a model that has learned little.")
    return notes


def check_drawing(bench: Bench) -> None:
    """Draw from made-up scores, so that an impossible budget is refused before the search.

    Raises:
        Refused: As `draw`.
    """
    config, anatomy = bench.config, anatomy_of(bench.config)
    before: Ticket | None = None
    for number in range(1, config.cuts + 1):
        before = stand_in(after_cut(config, number), anatomy, within=before)
