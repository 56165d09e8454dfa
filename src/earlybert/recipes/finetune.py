"""Fine-tune with an early-bird ticket: the whole run, or one stage of it at a time."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..anatomy import Refused
from ..config import Finetune
from ..ticket import Scores, Ticket, load
from .bench import Bench
from .progress import say
from .run import Run, default_output
from .stages import check_drawing, draw_stage, draw_ticket, plan, search_stage, train_stage
from .versus import versus


def finetune(config: Finetune, *, output: str | None, resume: bool, compare: bool) -> Run:
    """Search, draw and train (or train dense), in one run folder.

    Args:
        config: The settings.
        output: The run folder; `runs/<data>-<date>` when None.
        resume: Go on with the run in that folder.
        compare: Also train the dense model, and the dense model stopped at the ticket's cost.

    Raises:
        Refused: Anything about the input; before any compute.
    """
    if compare and config.method == "dense":
        raise Refused("--compare trains the dense model beside a ticket; use it with --method ticket.")
    bench, run = _begin(config, output, resume)
    metrics = _all_stages(bench, run)
    if compare:
        versus(bench, run, metrics)
    else:
        report(run, metrics)
    return run


def search(config: Finetune, *, output: str | None, resume: bool) -> Run:
    """Stage 1 alone."""
    bench, run = _begin(config, output, resume)
    scores = search_stage(bench, run)
    say(f"searched {scores.steps} steps (ended by: {scores.info['ended']}); scores are in {run.scores}")
    say(f"next: earlybert draw {run.path}")
    return run


def draw(path: str, *, settings: dict[str, Any], into: str | None) -> Run:
    """Stage 2 alone: draw a ticket from the scores of a run.

    Args:
        path: A run folder that was searched.
        settings: Drawing settings that replace those of the run.
        into: A new run folder for this ticket, so that one search serves many.
    """
    run = Run.open(path)
    scores = Scores.load(run.scores)
    config = replace(run.config, **settings)
    if into is not None:
        new = Run.prepare(into, config, resume=False)
        draw_ticket(config, scores)  # a refusal leaves no folder behind
        new.write_config()
        for file in (run.scores, run.history, run.searched):
            if file.exists():
                shutil.copy2(file, new.path / file.name)
        shutil.copy2(run.steps, new.steps)
        run = new
    elif run.model.exists() or run.checkpoint.exists():
        raise Refused(f"{run.path} has already trained its ticket; draw another one into a new folder with --into.")
    else:
        draw_ticket(config, scores)  # a refusal leaves no folder behind
        run = Run(run.path, config)
        run.write_config()
    ticket = draw_stage(run, scores)
    describe(ticket)
    say(f"next: earlybert train {run.path}")
    return run


def train(path: str, *, settings: dict[str, Any]) -> Run:
    """Stage 3 alone: train the ticket of a run.

    Args:
        path: A run folder with a ticket.
        settings: Training settings that replace those of the run; none once training has begun.
    """
    run = Run.open(path)
    if run.metrics.exists():
        raise Refused(f"{run.path} is already trained; see earlybert evaluate {run.path}.")
    config = replace(run.config, **settings)
    if config != run.config and run.checkpoint.exists():
        raise Refused(f"{run.path} has begun training with other settings; go on with its own.")
    if config.method == "ticket" and not run.ticket.exists():
        raise Refused(f"{run.path} has no ticket yet; run earlybert draw {run.path} first.")
    bench = Bench.set_up(config)
    run = Run(run.path, config)
    plan(bench)
    run.write_config()
    _, metrics = train_stage(bench, run)
    report(run, metrics)
    return run


def evaluate(path: str) -> dict[str, float]:
    """Score the saved model of a run on its validation data."""
    run = Run.open(path)
    bench = Bench.set_up(run.config)
    score = bench.score(load(run.model).to(bench.device))
    scores = ", ".join(f"{name} {value:.4f}" for name, value in score.items())
    say(f"{scores} on {len(bench.validation):,} rows")
    return score


def report(run: Run, metrics: dict[str, Any]) -> None:
    """Print what a run came to."""
    score = metrics["score"][metrics["headline"]]
    say(
        f"{metrics['headline']} {score:.4f} on {metrics['validation_rows']:,} rows; "
        f"{metrics['seconds']:.1f} s of training, {metrics['flops'] / 1e12:.1f} TFLOP, "
        f"{metrics['parameters']['after'] / 1e6:.1f} M parameters"
    )
    say(f"run folder: {run.path}")
    say(f"next: python -c \"import earlybert; print(earlybert.load('{run.model}'))\"")


def describe(ticket: Ticket) -> None:
    """Print what a ticket keeps."""
    total = ticket.layers * ticket.num_heads, ticket.layers * ticket.num_neurons
    say(
        f"ticket: {ticket.heads_kept} of {total[0]} heads and {ticket.neurons_kept:,} of {total[1]:,} neurons stay; "
        f"neurons by layer {', '.join(str(len(kept)) for kept in ticket.neurons)}"
    )


def _begin(config: Finetune, output: str | None, resume: bool) -> tuple[Bench, Run]:
    """Check everything that can be checked, then make the run folder."""
    if resume and output is None:
        raise Refused("--resume needs --output, the run folder to go on with.")
    run = Run.prepare(Path(output) if output else default_output(config), config, resume=resume)
    bench = Bench.set_up(config)
    lengths = plan(bench)
    if config.method == "ticket":
        check_drawing(bench)
    for note in bench.notes:
        say(f"note: {note}")
    say(
        f"{bench.task.name}: {len(bench.train):,} rows to train, {len(bench.validation):,} to validate; "
        f"{config.model} on {bench.device.type}, {'bf16' if bench.precision == 'bf16' else 'fp32'}, "
        f"{config.batch_size * config.accumulate} rows a step; "
        + (f"search at most {lengths.search} steps, " if config.method == "ticket" else "")
        + f"train {lengths.train}"
    )
    run.write_config()
    return bench, run


def _all_stages(bench: Bench, run: Run) -> dict[str, Any]:
    if run.metrics.exists():
        return run.read_metrics()
    if bench.config.method == "ticket":
        scores = search_stage(bench, run)
        if not run.ticket.exists():
            describe(draw_stage(run, scores))
    return train_stage(bench, run)[1]
