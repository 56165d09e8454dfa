"""Pre-train with an early-bird ticket: search, draw, and train in two phases (Sec. 4.1)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ..anatomy import Refused
from ..config.finetune import NO_RESULT
from ..config.pretrain import Pretrain
from ..ticket.files import write_atomically
from ..train.steplog import totals
from .display import say
from .drawing import describe
from .finetune import resumable
from .lock import locked
from .machine import Machine, launched_for_more
from .pretraining.bench import Bench
from .pretraining.estimate import hours
from .pretraining.run import PretrainRun
from .pretraining.stages import search_stage, ticket_stage, train_stage
from .report import write_report
from .run import WITH_ITS_OWN, environment
from .trackers import require, tracked

SEARCHED = "search.json"
"""In a run folder whose search was the whole run: what it cost."""

MOSTLY = 0.5
"""A larger share of documents with one sentence only is pointed out: their pairs are all random."""


@dataclass(frozen=True)
class Start:
    """What a run starts from, or goes on from: checked, nothing written yet."""

    bench: Bench
    run: PretrainRun
    fresh: bool
    """Whether the folder has to be a new one."""


def start(settings: Mapping[str, Any], *, output: str | None, resume: bool) -> Start:
    """Check everything that can be checked.

    Args:
        settings: Those that were given; a resumed run brings its own, and given ones have to agree. Only where the
            corpus lies may change, and what changes no result.
        output: The run folder; `runs/pretrain-<date>` when None.
        resume: Go on with the run in that folder.

    Raises:
        Refused: Anything about the input; before any compute.
    """
    if not resume:
        config = Pretrain(**settings)
        machine = Machine.found(config)
        path = machine.ranks.said(output or f"runs/pretrain-{datetime.now().strftime('%Y%m%d-%H%M%S')}")
        run = PretrainRun.create(path, config) if machine.ranks.main else PretrainRun(path, config)
    elif output is None:
        raise Refused("--resume needs --output, the run folder to go on with.")
    else:
        run = PretrainRun.open(output)
        # Of a corpus the content is compared; checkpoints hold whole tensors; models on the way change nothing.
        free = ("corpus", "shard", "save_every", "keep_models", *NO_RESULT)
        run.config = replace(run.config, **{name: value for name, value in settings.items() if name in free})
        run.refuse_changed(replace(run.config, **settings), WITH_ITS_OWN)
        machine = Machine.found(run.config)
    require(run.config.tracker)
    bench = Bench.set_up(run.config, machine)
    run.refuse_other_text(bench.text, bench.corpus.folder)
    return Start(bench, run, fresh=not resume)


def pretrain(start: Start, *, page: bool = True) -> PretrainRun:
    """Search, draw and train, in one run folder; what is finished already is left as it is.

    Args:
        start: What to run.
        page: Write `report.html` at the end, in the main process.
    """
    bench, run = start.bench, start.run
    ranks = bench.ranks
    with ExitStack() as held:
        if ranks.main:
            held.enter_context(_alone(start))
            announce(bench, run)
        held.enter_context(resumable(f"earlybert pretrain --output {run.path} --resume"))
        held.enter_context(ranks.reached())
        held.enter_context(tracked(run, main=ranks.main))
        if ranks.said(ranks.main and run.metrics.exists()):
            metrics = run.read_metrics()
        else:
            ticket = ticket_stage(bench, run) if run.config.method != "dense" else None
            if ticket is not None and ranks.main:
                describe(ticket)
            metrics = train_stage(bench, run, ticket)
    if ranks.main:
        report(run, metrics)
        if page:
            write_report(run)
    return run


@contextmanager
def _alone(start: Start) -> Iterator[None]:
    """On the main process: the run folder, held, with its settings in it.

    Raises:
        Refused: Another process holds it, or it has been begun since the start was checked.
    """
    with locked(start.run.path):
        if start.fresh:
            PretrainRun.create(start.run.path, start.run.config)
        start.run.write_config()
        yield


def search(start: Start) -> PretrainRun:
    """Stage 1 alone, for its history of coefficients; writes `search.json`. Training can follow with `pretrain`.

    Raises:
        Refused: The method has no search.
    """
    bench, run = start.bench, start.run
    if run.config.method != "ticket":
        raise Refused(f"method {run.config.method} has no search; use method: ticket.")
    alone = _alone(start) if bench.ranks.main else nullcontext()
    with alone, resumable(f"earlybert pretrain --output {run.path} --resume"), bench.ranks.reached():
        search_stage(bench, run)
    if bench.ranks.main:
        stage = totals(run.steps)["search"]
        result = {
            "corpus": bench.text,
            "method": "search",
            "stages": {"search": stage.to_dict()},
            "seconds": stage.seconds,
            "flops": bench.ranks.world * stage.flops,
            "environment": environment(bench.device, bench.precision),
        }
        write_atomically(run.path / SEARCHED, json.dumps(result, indent=2).encode() + b"\n")
    return run


def read_search(run: PretrainRun) -> dict[str, Any]:
    """`search.json`.

    Raises:
        Refused: It is missing or broken.
    """
    try:
        return json.loads((run.path / SEARCHED).read_bytes())
    except (OSError, ValueError):
        raise Refused(f"run folder {run.path} has no {SEARCHED} that can be read; search it first.") from None


def announce(bench: Bench, run: PretrainRun) -> None:
    """Say what is about to happen."""
    config, counts = bench.config, bench.corpus.manifest["counts"]
    say(
        f"{counts['train']['tokens']:,} tokens in {counts['train']['documents']:,} documents, "
        f"{counts['validation']['documents']:,} held out; BERT of {config.layers} layers, {config.hidden} features, "
        f"{config.attention_heads} heads, {config.intermediate:,} neurons, {bench.model.vocab_size:,} tokens, "
        f"{'with' if config.pairs else 'without'} next-sentence prediction; on {bench.device.type}, "
        f"{'bf16' if bench.precision == 'bf16' else 'fp32'}, {bench.engine} engine"
        f"{f', {bench.ranks.world} processes' if bench.ranks.world > 1 else ''}"
        f"{', the model cut up over them' if bench.sharded else ''}"
    )
    for note in launched_for_more(bench.ranks):
        say(f"note: {note}")
    if config.pairs and (single := bench.corpus.of_one_sentence()) > MOSTLY:
        say(
            f"note: {single:.0%} of the documents hold one sentence, and their pairs are always of two documents: "
            "next-sentence prediction has little to learn; --pairs false leaves it out."
        )
    if bench.plan.search:
        say(f"search {bench.plan.search} steps of phase 1")
    for leg in bench.plan.train:
        phase = leg.phase
        long = f"{phase.steps:,} steps" if config.minutes is None else f"{leg.share:.0%} of {config.minutes:g} minutes"
        say(
            f"phase {leg.number + 1}: {long}, {phase.batch:,} rows ({leg.accumulate} x {leg.rows}) of {phase.length} "
            f"tokens a step, learning rate {phase.lr:g}"
        )
    if config.minutes is None:
        flops = bench.flops()
        say(f"cost: at most {flops / 1e15:,.3g} PFLOP, {hours(flops)}")
    say(f"run folder: {run.path}")


def report(run: PretrainRun, metrics: dict[str, Any]) -> None:
    """Print what a run came to."""
    score, speed = metrics["score"], metrics["speed"]["train"]
    mfu = f" ({speed['mfu']:.1%} of the device's peak)" if speed["mfu"] is not None else ""
    say(
        f"held-out documents: loss {score['mlm_loss']:.4f}, {score['masked_accuracy']:.2%} of masked tokens found; "
        f"{speed['tokens_per_second']:,.0f} tokens/s{mfu}; {metrics['elapsed']:.0f} s, "
        f"{metrics['flops'] / 1e12:,.1f} TFLOP, {metrics['parameters']['after'] / 1e6:.1f} M parameters"
    )
    cut = " --method dense" if "ticket" in metrics else ""
    say(f"run folder: {run.path}")
    say(f"next: earlybert finetune --model {run.model}{cut} --task TASK")
