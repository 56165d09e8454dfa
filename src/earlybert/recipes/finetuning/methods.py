"""Every way of training by its name: how each prepares its ticket, and what it makes of theta_0."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from ...anatomy import Refused, of
from ...baselines import dense as dense_rival
from ...baselines import inverted, layerdrop, magnitude, random_ticket
from ...config.finetune import Data, Scope
from ...config.methods import METHODS, RIVALS, has_what_it_takes, untimed
from ...cost import count
from ...ticket import Scores, Ticket
from ...train.steplog import NO_STEPS, SCORING, add_line, totals, truncate
from ..drawing import draw_stage
from ..places import alike
from ..run import Run, copy_search, digest
from .bench import SHARED_ORDER, TICKET_ORDER, Bench
from .gradual import begin_gradually
from .masked_search import masked_objective
from .rounds import begin_imp, imp_rounds
from .scoring import Scored, sensitivity
from .stages import Begin, Begun, begin_dense, begin_ticket, matched_steps, search_stage, searched
from .timing import contenders, in_turns, some_batches

SAME = (
    *("model", "seed"),
    *(f.name for f in fields(Data) if f.name not in ("truncate", "offline")),  # which only allow what there is
    *("batch_size", "accumulate", "warmup", "weight_decay", "max_grad_norm", "precision", "engine"),
)
"""Settings that a run shares with the one it takes something from."""
Prepare = Callable[[Bench, Run], object]


@dataclass(frozen=True)
class Way:
    """How a method is run."""

    begin: Begin = begin_ticket
    prepare: Prepare = lambda bench, run: None
    """Stages 1 and 2, resumable: leaves `ticket.json`, or what `begin` needs, in the run folder. Of several processes,
    all search, and the first does the rest."""


def of_method(name: str) -> Way:
    """The way of a method named in `config.METHODS`."""
    return WAYS[name]


def settled(bench: Bench) -> Bench:
    """Checked against the run that it is like, and as long as that allows, where it stops at its cost.

    Raises:
        Refused: That run is not finished, or of something else.
    """
    config = bench.config
    if not METHODS[config.method].like:
        return bench
    run = _like(bench)
    if config.method not in RIVALS or config.dense_steps is not None:
        return bench
    metrics = run.read_metrics()
    if config.method == "dense_same_flops":
        stream = bench.stream(SHARED_ORDER)
        padded = metrics["engine"] == "EagerStep"
        steps = dense_rival.steps_within(metrics["flops"], count(bench.theta_0()), stream, padded=padded)
    else:
        steps = _steps_in_its_time(bench, run)
    return replace(bench, config=replace(config, dense_steps=steps))


def _steps_in_its_time(bench: Bench, run: Run) -> int:
    """Its steps are timed now, in turns: clocks of runs at different times, or side by side, do not compare.

    Raises:
        Refused: It took steps that are not timed here.
    """
    its = run.config
    if what := untimed(its.method, its.cuts):
        raise Refused(f"--like {run.path} has {what}, whose steps are not timed; use dense_same_flops.")
    stages = totals(run.steps)
    with contenders(bench, {"ticket": Ticket.load(run.ticket)}, match=its.match) as steps:
        found = {name: statistics.median(times) for name, times in in_turns(steps, some_batches(bench)).items()}
    trained = stages["train"].steps
    taken = {
        "search": stages["search"].steps if "search" in stages else 0,
        "matched": matched_steps(its, trained),
    }
    taken["ticket"] = trained - taken["matched"]
    other = sum(stages[name].seconds for name in NO_STEPS if name in stages)
    return dense_rival.steps_in_time(taken, other, seconds=found)


def _like(bench: Bench) -> Run:
    """The run that this one takes something from.

    Raises:
        Refused: It is not there, not finished, or of another model, task or seed.
    """
    assert bench.config.like is not None
    run = Run.open(bench.config.like)
    if not has_what_it_takes(run.config.method, bench.config.method):
        raise Refused(f"--like {run.path} is a run of method {run.config.method}, not of a ticket.")
    if not run.metrics.exists() or not (run.ticket.exists() or METHODS[run.config.method].dense):
        raise Refused(f"--like {run.path} is not finished; run it to its end first.")
    for name in SAME:
        mine, its = getattr(bench.config, name), getattr(run.config, name)
        if not alike(name, mine, its):
            raise Refused(f"--like {run.path} has {name} {its!r} and this run {mine!r}; they cannot be compared.")
    return run


def _searched_ticket(bench: Bench, run: Run) -> None:
    scores = search_stage(bench, run)
    if bench.ranks.main and not run.ticket.exists():
        draw_stage(run, scores)


def _masked_ticket(bench: Bench, run: Run) -> None:
    objective = None if run.scores.exists() else masked_objective(bench)
    scores = search_stage(bench, run, objective=objective)
    if not run.ticket.exists():
        draw_stage(run, scores)


def _random(bench: Bench, run: Run) -> None:
    if bench.ranks.main and not run.ticket.exists():
        scores = random_ticket.scores(of(bench.theta_0()), bench.config.seed)
        scores.save(run.scores)
        draw_stage(run, scores)


def _magnitude(bench: Bench, run: Run) -> None:
    if bench.ranks.main and not run.ticket.exists():
        began = time.perf_counter()
        model = bench.theta_0()
        scores = replace(magnitude.scores(model, bench.config.seed), info={"theta_0": digest(model)})
        _scored(run, scores, [(time.perf_counter() - began, 0)])


def _from_another(make: Callable[[Run, Scores, Ticket], None]) -> Prepare:
    """Copy a ticket's search, whose cost counts here too, and make another ticket of it."""

    def prepare(bench: Bench, run: Run) -> None:
        if not bench.ranks.main or run.ticket.exists():
            return
        other = _like(bench)
        copy_search(other, run)
        make(run, Scores.load(run.drawn_from), Ticket.load(other.ticket))

    return prepare


def _same_widths(run: Run, scores: Scores, ticket: Ticket) -> None:
    began = time.perf_counter()
    drawn = random_ticket.like(ticket, run.config.seed)
    add_line(run.steps, "draw", 1, time.perf_counter() - began)
    drawn.save(run.ticket)  # last: its presence says that the stage is done


def _inverted(run: Run, scores: Scores, ticket: Ticket) -> None:
    budget = budget_of(ticket, *(ticket.drawn.get(f"{what}_scope", "global") for what in ("heads", "neurons")))
    draw_stage(Run(run.path, replace(run.config, **budget)), inverted.scores(scores))


def _uniform(run: Run, scores: Scores, ticket: Ticket) -> None:
    draw_stage(Run(run.path, replace(run.config, **budget_of(ticket, "layer", "layer"))), scores)


def budget_of(ticket: Ticket, heads_scope: Scope, neurons_scope: Scope) -> dict[str, Any]:
    """Drawing settings that keep as many heads and neurons as a ticket does, whatever it was drawn by.

    Args:
        ticket: Its counts are what is kept; to one a layer, where a scope is a layer and layers differ.
        heads_scope: As in `Drawing`.
        neurons_scope: As in `Drawing`.
    """

    def removed(units: int, kept: int, scope: Scope) -> int:
        return units - round(kept / ticket.layers) if scope == "layer" else units * ticket.layers - kept

    return {
        "heads": removed(ticket.num_heads, ticket.heads_kept, heads_scope),
        "neurons": removed(ticket.num_neurons, ticket.neurons_kept, neurons_scope),
        "heads_scope": heads_scope,
        "neurons_scope": neurons_scope,
        "align": ticket.drawn.get("align", 1),
    }


def _sensitive(kind: Scored, *, at_searched: bool) -> Prepare:
    """Score by gradients or second moments, at theta_0 or after a search, and draw."""

    def prepare(bench: Bench, run: Run) -> None:
        if at_searched:
            search_stage(bench, run, keep_weights=True)
        if not bench.ranks.main or run.ticket.exists():
            return
        model = bench.theta_0()
        about: dict[str, Any] = {"theta_0": digest(model)}
        first, order = 0, TICKET_ORDER
        if at_searched:
            first, order = Scores.load(run.scores).steps, SHARED_ORDER  # data that the search has not seen
            about = {**Scores.load(run.scores).info, **about}
            searched(bench, run, model)
        scores, lines = sensitivity(bench, model, kind, first, order)
        _scored(run, replace(scores, steps=first, info=about), lines, overwrite=not at_searched)

    return prepare


def _scored(run: Run, scores: Scores, lines: list[tuple[float, int]], *, overwrite: bool = True) -> None:
    """Keep scores that took no optimizer step, log what they cost, and draw from them."""
    truncate(run.steps, "search", scores.steps)
    add_line(run.steps, SCORING, 1, sum(seconds for seconds, _ in lines), sum(flops for _, flops in lines))
    scores.save(run.scores if overwrite else run.sensitivity)
    draw_stage(run, scores)


def _begin_layerdrop(bench: Bench, run: Run, theta_0: nn.Module) -> Begun:
    layerdrop.remove_layers(theta_0, layerdrop.kept_layers(len(of(theta_0).layers)))
    return Begun(theta_0, SHARED_ORDER)


def _begin_layerdrop_trained(bench: Bench, run: Run, theta_0: nn.Module) -> Begun:
    cost = count(theta_0)
    dropping: list[layerdrop.LayerDrop] = []

    def watch(first: int) -> tuple[layerdrop.LayerDrop, layerdrop.LayerDrop]:
        dropping.append(layerdrop.LayerDrop(theta_0, cost, seed=bench.config.seed, first=first))
        return dropping[0], dropping[0]

    def finish() -> None:
        dropping[0].stop()
        layerdrop.remove_layers(theta_0, layerdrop.kept_layers(len(of(theta_0).layers)))

    return Begun(theta_0, SHARED_ORDER, static=False, watch=watch, finish=finish)


WAYS: dict[str, Way] = {
    "ticket": Way(prepare=_searched_ticket),
    "dense": Way(begin_dense),
    "dense_same_flops": Way(begin_dense),
    "dense_same_time": Way(begin_dense),
    "random": Way(prepare=_random),
    "random_same_widths": Way(prepare=_from_another(_same_widths)),
    "inverted": Way(prepare=_from_another(_inverted)),
    "uniform": Way(prepare=_from_another(_uniform)),
    "taylor": Way(prepare=_sensitive("taylor", at_searched=False)),
    "fisher": Way(prepare=_sensitive("fisher", at_searched=False)),
    "taylor_searched": Way(begin_gradually("taylor"), _sensitive("taylor", at_searched=True)),
    "fisher_searched": Way(begin_gradually("fisher"), _sensitive("fisher", at_searched=True)),
    "surgeon": Way(prepare=_sensitive("surgeon", at_searched=False)),
    "surgeon_searched": Way(begin_gradually("surgeon"), _sensitive("surgeon", at_searched=True)),
    "magnitude": Way(prepare=_magnitude),
    "mlm_search": Way(prepare=_masked_ticket),
    "layerdrop": Way(_begin_layerdrop),
    "layerdrop_trained": Way(_begin_layerdrop_trained),
    "imp": Way(begin_imp, imp_rounds),
}
