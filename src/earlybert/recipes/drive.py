"""The training loop of one stage, with its log, its checkpoints and its bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..cost import count
from ..tasks.batches import Batch
from ..ticket import Gates, HistoryWriter, Scores
from ..train import checkpoint
from ..train.clock import Clock
from ..train.interrupt import Interrupt, Terminated
from ..train.loop import Done, LossWatch, Observer, loop, refuse_infinite
from ..train.profile import profile
from ..train.ranks import ALONE, Ranks
from ..train.schedule import Schedule
from ..train.search import Recorder
from ..train.step import EagerStep
from ..train.steplog import STAGES, Counts, StepLog, truncate
from .display import say
from .progress import Distances, Live
from .run import RunFolder
from .trackers import Tracker


def drive(
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
    ranks: Ranks = ALONE,
    distances: Distances = (),
    left: Callable[[], float] | None = None,
    end: int | None = None,
) -> int:
    """Run the loop of a stage with its log, its checkpoints and its bar.

    Args:
        run: The folder, whose settings say how often to log and to write checkpoints.
        stage: Name in the log and in the checkpoint.
        step: Does one.
        batches: Micro-batches of each optimizer step, from step `first` on.
        title: Of the bar.
        first: Optimizer steps done before.
        steps: The cap, `first` included.
        lr: Base learning rate, for the log.
        schedule: Of the learning rate.
        observers: Called after every step, behind the log.
        before_checkpoint: Called before a checkpoint is written.
        cost: Counts the FLOPs of a step; the model's own by default.
        state: What a checkpoint has to remember besides stage and step. JSON values only.
        ranks: The processes of the job; only the first writes and shows anything.
        distances: Of the masks, while a search runs; to be shown.
        left: Seconds left, where they do not depend on the steps left.
        end: Of the stage, where other steps follow these; `steps` when None.

    Returns:
        Optimizer steps done in all.
    """
    clock, end = Clock(step.device), end or steps
    step.model.train()
    with Interrupt() as interrupt, ExitStack() as shown:
        if ranks.main:
            log = _log(run, stage, step, clock, first=first, lr=lr, cost=cost)
            flushed = (log.flush, *before_checkpoint)
            live = Live(title, stage, first, end, log, distances=distances, left=left, feeds=step.feeds)
            last: list[Observer] = [shown.enter_context(live)]
            if run.tracker is not None:
                run.tracker.begin(stage, first)
                log.readers.append(run.tracker.lines)
                last.append(Drift(run.tracker, distances))
        else:
            log, flushed, last = LossWatch(first, every=run.config.log_every), (), []
        checkpoints = Checkpoints(run, stage, step, end, interrupt, before=flushed, state=state, ranks=ranks)
        done = loop(
            step,
            batches,
            first=first,
            steps=steps,
            schedule=schedule,
            clock=clock,
            observers=[log, *observers, checkpoints, *last],
        )
        if isinstance(log, StepLog):
            log.flush()
    refuse_infinite(step.model, done, step.gates)
    return done


@contextmanager
def recording(run: RunFolder[Any], gates: Gates, *, first: int, ranks: Ranks) -> Iterator[list[Recorder]]:
    """Recorders of a search's coefficients, into `history.bin`: one in the process that writes, none in the others.

    Args:
        run: The folder.
        gates: What is searched.
        first: Optimizer steps done before; what was recorded behind them goes.
        ranks: The processes of the job.
    """
    if not ranks.main:
        yield []
        return
    with closing(HistoryWriter(run.history, gates, rows=first)) as writer:
        yield [Recorder(writer)]


def end_search(run: RunFolder[Any], scores: Scores, about: Mapping[str, Any], ranks: Ranks) -> Scores:
    """Leave the result of a search in its run folder.

    Args:
        run: The folder.
        scores: As they were collected.
        about: What else to remember of the search, in their `info`. JSON values only.
        ranks: The processes of the job; the first writes.
    """
    scores = replace(scores, info={**scores.info, **about})
    if ranks.main:
        scores.save(run.scores)  # its presence says that the stage is done
        run.checkpoint.unlink(missing_ok=True)
    return scores


def _log(
    run: RunFolder[Any], stage: str, step: EagerStep, clock: Clock, *, first: int, lr: float, cost: Counts | None
) -> StepLog:
    return StepLog(
        run.steps,
        stage,
        cost=cost or count(step.model),
        step=step,
        clock=clock,
        first=first,
        lr=lr,
        every=run.config.log_every,
    )


class Drift:
    """Observer that tells a run's trackers every new distance of the masks."""

    def __init__(self, tracker: Tracker, distances: Distances) -> None:
        self._tracker, self._distances, self._told = tracker, distances, len(distances)

    def __call__(self, done: Done) -> bool:
        """Tell what is new."""
        for _, heads, neurons in self._distances[self._told :]:
            self._tracker.scalars({"mask_distance_heads": heads, "mask_distance_neurons": neurons}, done.step)
        self._told = len(self._distances)
        return False


class Checkpoints:
    """Observer that writes a checkpoint when it is time, and when the person asks to stop.

    Args:
        run: The folder.
        stage: Name in the checkpoint.
        step: Whose model and optimizer are saved.
        steps: The last step of the stage, after which its result is saved anyway.
        interrupt: Knows whether somebody asked to stop.
        before: Called before a checkpoint is written.
        state: What it has to remember besides stage and step.
        ranks: The processes of the job; the first writes, and all stop when one is asked to.

    Raises:
        KeyboardInterrupt: The person asked to stop; the checkpoint is written.
    """

    def __init__(
        self,
        run: RunFolder[Any],
        stage: str,
        step: EagerStep,
        steps: int,
        interrupt: Interrupt,
        *,
        before: Sequence[Callable[[], None]],
        state: Callable[[], dict[str, Any]],
        ranks: Ranks,
    ) -> None:
        self._run, self._stage, self._step, self._steps = run, stage, step, steps
        self._interrupt, self._before, self._state, self._ranks = interrupt, before, state, ranks

    def __call__(self, done: Done) -> bool:
        """Write one, if it is time."""
        every = self._run.config.checkpoint_every
        due = every and done.step % every == 0 and done.step < self._steps
        asked, terminated = map(bool, self._ranks.totals([self._interrupt.asked, self._interrupt.terminated]))
        if due or asked:
            # What is not finite stops the run here, before a good checkpoint is replaced.
            for flush in self._before:
                flush()
            refuse_infinite(self._step.model, done.step, self._step.gates)
            self._write(done.step)
        # After every step, not only here: a run that is never stopped has the same random numbers.
        self._ranks.reseed(self._run.config.seed, STAGES.index(self._stage), done.step)
        if asked:
            raise Terminated if terminated else KeyboardInterrupt
        return False

    def _write(self, number: int) -> None:
        step, state = self._step, {"stage": self._stage, "step": number, **self._state()}
        if self._run.command is not None:
            state["command"] = self._run.command
        parts = {"model": step.model, "optimizer": step.optimizer, "gates": step.gates}
        checkpoint.save(self._run.checkpoint, **parts, state=state, write=self._ranks.main)


def profiled(
    run: RunFolder[Any], stage: str, step: EagerStep, batches: Iterable[Sequence[Batch]], *, ranks: Ranks = ALONE
) -> None:
    """Time the parts of some more steps of a stage that is over, into `profile.json`.

    Args:
        run: The folder, whose settings say how many.
        stage: As in `drive`.
        step: Of the stage; not to be used any more.
        batches: As in `drive`.
        ranks: The processes of the job, all of which take the steps; the first writes.
    """
    if run.config.profile_steps == 0:
        return
    try:
        found = profile(step, batches, run.config.profile_steps)
    except torch.OutOfMemoryError:
        if ranks.world > 1:  # the others are within a step that they take together
            raise
        found = {"steps": 0}
        say("note: no room to take a step apart: where its time goes is not known.")
    if ranks.main and found["steps"]:
        run.write_profile({**run.read_profile(), stage: found})


def resume(run: RunFolder[Any], stage: str, step: EagerStep, *, begins: int = 0, ranks: Ranks = ALONE) -> int:
    """Put the stage's last checkpoint back, if there is one; optimizer steps done.

    Args:
        run: The folder.
        stage: As in `drive`.
        step: What takes the weights and the optimizer's state.
        begins: Steps that were done before; a checkpoint from before is of another round.
        ranks: The processes of the job, all of which read the checkpoint.
    """
    first = begins
    state = checkpoint.peek(run.checkpoint) if run.checkpoint.exists() else {}
    if state.get("stage") == stage and state["step"] > begins:
        first = checkpoint.load(run.checkpoint, model=step.model, optimizer=step.optimizer, gates=step.gates)["step"]
        step.refresh()
    ranks.agree(first, "checkpoint")  # and nobody looks for it any more when it goes
    ranks.reseed(run.config.seed, STAGES.index(stage), first)
    if ranks.main:
        truncate(run.steps, stage, first)
    return first
