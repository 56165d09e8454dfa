"""The training loop of one stage, with its log, its checkpoints and its bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..cost import count
from ..tasks.batches import Batch
from ..train import checkpoint
from ..train.clock import Clock
from ..train.interrupt import Interrupt
from ..train.loop import Done, Observer, loop, refuse_infinite
from ..train.schedule import Schedule
from ..train.step import EagerStep
from ..train.steplog import Counts, StepLog, truncate
from .bench import Bench
from .progress import Bar
from .run import Run, RunFolder


def drive(
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
    cost: Counts | None = None,
) -> int:
    """Run the loop of a stage with its log, its checkpoints and its bar.

    Args:
        bench: With the data and the settings.
        run: The folder.
        stage: Name in the log and in the checkpoint.
        step: Does one.
        first: Optimizer steps done before.
        steps: The cap, `first` included.
        lr: Base learning rate, for the log.
        schedule: Of the learning rate.
        order: Which of the two data orders.
        observers: Called after every step, behind the log.
        before_checkpoint: Called before a checkpoint is written.
        cost: Counts the FLOPs of a step; the model's own by default.

    Returns:
        Optimizer steps done in all.
    """
    return take(
        run,
        stage,
        step,
        bench.stream(order).starting_at(first),
        title=stage if stage == "search" else f"train {bench.config.method}",
        first=first,
        steps=steps,
        lr=lr,
        schedule=schedule,
        observers=observers,
        before_checkpoint=before_checkpoint,
        cost=cost,
    )


def take(
    run: RunFolder[Any],
    stage: str,
    step: EagerStep,
    batches: Iterable[Sequence[Batch]],
    *,
    title: str,
    first: int,
    steps: int,
    lr: float,
    schedule: Schedule,
    observers: Sequence[Observer],
    before_checkpoint: Sequence[Callable[[], None]] = (),
    cost: Counts | None = None,
    state: Callable[[], dict[str, Any]] = dict,
) -> int:
    """Take optimizer steps on any batches, as `drive`.

    Args:
        run: The folder, whose settings say how often to log and to write checkpoints.
        stage: As in `drive`.
        step: As in `drive`.
        batches: Micro-batches of each optimizer step, from step `first` on.
        title: Of the bar.
        first: As in `drive`.
        steps: As in `drive`.
        lr: As in `drive`.
        schedule: As in `drive`.
        observers: As in `drive`.
        before_checkpoint: As in `drive`.
        cost: As in `drive`.
        state: What a checkpoint has to remember besides stage and step. JSON values only.

    Returns:
        Optimizer steps done in all.
    """
    config = run.config
    clock = Clock(step.device)
    log = StepLog(
        run.steps,
        stage,
        cost=cost or count(step.model),
        step=step,
        clock=clock,
        first=first,
        lr=lr,
        every=config.log_every,
    )
    step.model.train()

    def write_checkpoint(done: Done) -> bool:
        due = config.checkpoint_every and done.step % config.checkpoint_every == 0 and done.step < steps
        if due or interrupt.asked:
            # What is not finite stops the run here, before a good checkpoint is replaced.
            for flush in (log.flush, *before_checkpoint):
                flush()
            refuse_infinite(step.model, done.step)
            known = {"stage": stage, "step": done.step, **state()}
            checkpoint.save(run.checkpoint, model=step.model, optimizer=step.optimizer, gates=step.gates, state=known)
        if interrupt.asked:
            raise KeyboardInterrupt
        return False

    with Interrupt() as interrupt, Bar(title, first, steps, log) as bar:
        done = loop(
            step,
            batches,
            first=first,
            steps=steps,
            schedule=schedule,
            clock=clock,
            observers=[log, *observers, write_checkpoint, bar],
        )
        log.flush()
    refuse_infinite(step.model, done)
    return done


def resume(run: RunFolder[Any], stage: str, step: EagerStep, *, begins: int = 0) -> int:
    """Put the stage's last checkpoint back, if there is one; optimizer steps done.

    Args:
        run: The folder.
        stage: As in `drive`.
        step: What takes the weights and the optimizer's state.
        begins: Steps that were done before; a checkpoint from before is of another round.
    """
    first = begins
    state = checkpoint.peek(run.checkpoint) if run.checkpoint.exists() else {}
    if state.get("stage") == stage and state["step"] > begins:
        first = checkpoint.load(run.checkpoint, model=step.model, optimizer=step.optimizer, gates=step.gates)["step"]
        step.refresh()
    truncate(run.steps, stage, first)
    return first
