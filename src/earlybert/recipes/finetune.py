"""Fine-tune with an early-bird ticket: the whole run, or the search or the training of one alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..anatomy import Refused, of
from ..baselines import layerdrop
from ..config.finetune import NO_RESULT, Finetune
from ..config.methods import METHODS, RIVALS
from ..config.recipe import with_recipe
from ..config.values import changed, to_dict
from ..tasks import Predictions
from ..ticket import Ticket, load
from .display import say
from .drawing import describe
from .finetuning.bench import Bench
from .finetuning.masked_search import masked_model
from .finetuning.methods import of_method, settled
from .finetuning.plan import advice, check_drawing, plan
from .finetuning.stages import close, search_stage, train_stage
from .lock import locked
from .machine import Machine, launched_for_more
from .places import same_places
from .report import write_card, write_report
from .run import AGAIN, WITH_ITS_OWN, Run, default_output, resuming
from .trackers import require, tracked
from .versus import versus


@dataclass(frozen=True)
class Start:
    """What a run starts from, or goes on from: checked, nothing written yet."""

    bench: Bench
    run: Run
    fresh: bool
    """Whether the folder has to be a new one."""

    @contextmanager
    def at_work(self, command: str) -> Iterator[None]:
        """Around the work: no other job is at it, and none was since the checks. The settings are written.

        Args:
            command: Goes on with it.

        Raises:
            Refused: Another job is at it, or was; or a process of this one is gone.
        """
        ranks = self.bench.ranks
        with locked(self.run.path) if ranks.main else nullcontext(), resumable(command), ranks.reached():
            if ranks.main and self.fresh:
                Run.create(self.run.path, self.run.config)
            if ranks.main:
                announce(self.bench, self.run)
            ranks.agree(self.bench.text, "training rows")
            ranks.agree((self.run.path / "config.yaml").exists(), "run folder")
            yield


def start(settings: Mapping[str, Any], *, output: str | None, resume: bool, reuse: bool = False) -> Start:
    """Check everything that can be checked.

    Args:
        settings: Those that were given; a resumed run brings its own, and given ones have to agree.
        output: The run folder; `runs/<data>-<date>` when None.
        resume: Go on with the run in that folder.
        reuse: As `Bench.set_up`.

    Raises:
        Refused: Anything about the input; before any compute.
    """
    if not resume:
        config = Finetune(**with_recipe(settings))
        machine = Machine.found(config)
        path = machine.ranks.said(str(output or default_output(config)))
        run = Run.create(path, config) if machine.ranks.main else Run(path, config)
    elif output is None:
        raise Refused("--resume needs --output, the run folder to go on with.")
    else:
        run = Run.open(output)
        run.config = replace(run.config, **{name: settings[name] for name in NO_RESULT if name in settings})
        refuse_changes(run, settings)
        machine = Machine.found(run.config)
    _refuse_together(run.config, machine.ranks.world)
    require(run.config.tracker)
    bench = Bench.set_up(run.config, machine, reuse=reuse)
    run.refuse_other_text(bench.text, bench.where)
    plan(bench)
    kind = METHODS[run.config.method]
    if not (kind.dense or kind.like):  # what is like a ticket has its budget
        check_drawing(bench)
    theta_0 = bench.theta_0()  # weights that cannot be read are refused before anything is written
    anatomy = of(theta_0)
    if run.config.method.startswith("layerdrop"):
        layerdrop.refuse_unremovable(theta_0)
    if run.config.method == "layerdrop_trained":
        layerdrop.refuse_undroppable(theta_0)
    if run.config.method == "mlm_search":
        masked_model(bench)
    if run.config.method.startswith("surgeon"):
        anatomy.refuse_repeats("surgeon scores")
    if run.config.refit and not METHODS[run.config.method].dense:
        anatomy.refuse_repeats("refits (refit: 0 leaves them out)")
    bench = settled(bench)
    return Start(bench, Run(run.path, bench.config), fresh=not resume)


def _refuse_together(config: Finetune, world: int) -> None:
    """What several processes cannot do together.

    Raises:
        Refused: As said.
    """
    if world == 1:
        return
    what = f"method {config.method}" if METHODS[config.method].alone else "a run of several cuts"
    if METHODS[config.method].alone or config.cuts > 1:
        raise Refused(f"{what} runs on one process; start it without a launcher.")
    if config.batch_size < world:
        raise Refused(
            f"{world} processes share the rows of a micro-batch, and there are {config.batch_size}; raise --batch-size "
            "(and lower --accumulate)."
        )


def refuse_changes(run: Run, settings: Mapping[str, Any]) -> None:
    """A run keeps the settings it was made with.

    Raises:
        Refused: One of these is another.
    """
    given = {**settings, **same_places(run.config, settings)}
    run.refuse_changed(replace(run.config, **given), WITH_ITS_OWN)


def refuse_other(run: Run, settings: Mapping[str, Any]) -> None:
    """A finished run counts for these settings only if it would be made the same way again, defaults included.

    Raises:
        Refused: A setting is another, or was given then and is not now.
    """
    wanted = Finetune(**with_recipe(settings))
    same: dict[str, Any] = {name: getattr(run.config, name) for name in NO_RESULT}
    if wanted.method in RIVALS:
        same["dense_steps"] = run.config.dense_steps  # read off the ticket
    run.refuse_changed(replace(wanted, **same, **same_places(run.config, to_dict(wanted))), AGAIN)


def finetune(start: Start, *, compare: bool, page: bool = True) -> Run:
    """Search, draw and train (or train dense), in one run folder.

    Args:
        start: What to run.
        compare: Also train the dense model, and the dense model stopped at the ticket's cost.
        page: Write `report.html` at the end, about two seconds on a core.

    Raises:
        Refused: There is no ticket to compare.
    """
    bench, run, main = start.bench, start.run, start.bench.ranks.main
    if compare and not METHODS[run.config.method].keeps:
        raise Refused(
            "--compare trains the dense model beside a ticket that was searched; use it with --method ticket."
        )
    run.command = "finetune"
    command = f"{resuming('finetune', run.path)}{' --compare' if compare else ''}"
    with start.at_work(command):
        with tracked(run, main=main):
            metrics = _all_stages(bench, run)
        if compare:
            versus(bench, run, metrics)
        if main:
            _close(run, metrics, compared=compare, page=page)
    return run


def _close(run: Run, metrics: dict[str, Any], *, compared: bool, page: bool) -> None:
    if compared:
        write_card(run)  # now with its rivals
    else:
        report(run, metrics)
    if page:
        write_report(run)


def search(start: Start) -> Run:
    """Stage 1 alone."""
    run = start.run
    if run.config.method != "ticket":
        raise Refused(
            f"earlybert search leaves coefficients to draw from, and method {run.config.method} scores otherwise; use "
            "earlybert finetune."
        )
    run.command = "search"
    with start.at_work(resuming("search", run.path)), tracked(run, main=start.bench.ranks.main):
        scores = search_stage(start.bench, run)
    say(f"searched {scores.steps} steps (ended by: {scores.info['ended']}); scores are in {run.scores}")
    say(f"next: earlybert draw {run.path}")
    return run


def train(path: str, *, settings: dict[str, Any]) -> Run:
    """Stage 3 alone: train the ticket of a run.

    Args:
        path: A run folder with a ticket.
        settings: Training settings that replace those of the run; none once training has begun.
    """
    run = Run.open(path)
    machine = Machine.found(run.config)
    with locked(run.path) if machine.ranks.main else nullcontext():
        return _train(run, machine, settings=settings)


def _train(run: Run, machine: Machine, *, settings: dict[str, Any]) -> Run:
    if run.metrics.exists():
        raise Refused(f"{run.path} is already trained; see earlybert evaluate {run.path}.")
    config = replace(run.config, **settings)
    different = changed(run.config, config)
    if different and run.training:
        raise Refused(
            f"{run.path} has begun training with other settings ({', '.join(different)}); go on with its own."
        )
    if different and "keep" in (run.config.weights, config.weights) and METHODS[config.method].searches:
        raise Refused(
            f"{run.path} was searched for weights={run.config.weights}, with one schedule over the whole run, so "
            f"{', '.join(different)} cannot change any more; search again."
        )
    kind = METHODS[config.method]
    if not (kind.dense or config.method in RIVALS or run.ticket.exists()):
        raise Refused(f"{run.path} has no ticket yet; run {run.goes_on} first.")
    _refuse_together(config, machine.ranks.world)
    require(config.tracker)
    bench, run = Bench.set_up(config, machine), Run(run.path, config)
    run.command = "train"
    run.refuse_other_text(bench.text, bench.where)
    main = bench.ranks.main
    with resumable(f"earlybert train {run.path}"), bench.ranks.reached(), tracked(run, main=main):
        bench.ranks.agree(bench.text, "training rows")
        _, metrics = train_stage(bench, run, of_method(config.method).begin)
    if main:
        _close(run, metrics, compared=False, page=True)
    return run


def evaluate(path: str) -> dict[str, float]:
    """Score the saved model of a run on its validation data.

    Raises:
        Refused: The run is not trained, or its data cannot be used or names other classes now.
    """
    run = Run.open(path)
    if not run.metrics.exists():
        raise Refused(f"{path} is not trained yet; run {run.goes_on} first.")
    bench = Bench.set_up(run.config)
    model = load(run.model).to(bench.device)
    bench.refuse_other_labels(model)
    predictions = bench.predict(model)
    score = predictions.score()
    if run.predictions.exists() and not np.array_equal(Predictions.load(run.predictions).labels, predictions.labels):
        say(
            "note: these are not the rows that the run validated on, the data has changed since: the score cannot be "
            "compared, and rows that were held out of train may be others now."
        )
    scores = ", ".join(f"{name} {value:.4f}" for name, value in score.items())
    say(f"{scores} on {len(bench.task.validation):,} rows")
    return score


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Whoever stops the run is told the command that goes on with it."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise type(stop)(command) from None


def report(run: Run, metrics: dict[str, Any]) -> None:
    """Print what a run came to."""
    score = metrics["score"][metrics["headline"]]
    say(
        f"{metrics['headline']} {score:.4f} on {metrics['validation_rows']:,} rows; "
        f"{metrics['seconds']:.1f} s of training, {metrics['flops'] / 1e12:.1f} TFLOP, "
        f"{metrics['parameters']['after'] / 1e6:.1f} M parameters"
    )
    say(f"run folder: {run.path}")
    say(f"next: earlybert evaluate {run.path}, or in Python:  model = earlybert.load({str(run.model)!r})")


def announce(bench: Bench, run: Run) -> None:
    """Make the run folder, and say what is about to happen."""
    config, lengths = bench.config, plan(bench)
    run.write_config()
    for note in (*bench.notes, *advice(bench), *launched_for_more(bench.ranks)):
        say(f"note: {note}")
    task = bench.task
    windows = f" ({len(bench.train):,} windows)" if len(bench.train) != len(task.train) else ""
    train = f"train {lengths.train}"
    if METHODS[config.method].searches:
        search = f"search at most {lengths.search}"
        train = f"{train} ({search} of them)" if config.weights == "keep" else f"{search} steps, {train}"
    say(
        f"{task.name}: {len(task.train):,} rows to train{windows}, {len(task.validation):,} to validate, "
        f"{task.target}; "
        f"{config.model} on {bench.device.type}, {'bf16' if bench.precision == 'bf16' else 'fp32'}, "
        f"{bench.engine} engine, {f'{bench.ranks.world} processes, ' if bench.ranks.world > 1 else ''}"
        f"{config.batch_size * config.accumulate} rows a step; {train}"
    )
    say(f"run folder: {run.path}")


def _all_stages(bench: Bench, run: Run) -> dict[str, Any]:
    ranks = bench.ranks
    if ranks.said(ranks.main and run.metrics.exists()):
        if ranks.main:
            close(run)  # if it was stopped just behind its end
        return run.read_metrics()
    way = of_method(bench.config.method)
    way.prepare(bench, run)
    ranks.wait()
    if run.ticket.exists() and not run.training:
        describe(Ticket.load(run.ticket))
    return train_stage(bench, run, way.begin)[1]
