"""TensorBoard, Weights & Biases and others, through the trackers of `accelerate`: optional, and never a run's end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..anatomy import Refused, first_line
from ..config.finetune import TRACKERS, trackers_of
from ..config.values import to_dict
from ..train.steplog import read_steps
from .display import display, say

PROJECT = "earlybert"


def require(setting: str) -> None:
    """Refuse trackers whose package is not there.

    Args:
        setting: `Bookkeeping.tracker`.

    Raises:
        Refused: As said.
    """
    for name in trackers_of(setting):
        if not any(find_spec(package) for package in TRACKERS[name]):
            package = TRACKERS[name][0]
            extra = " or 'earlybert[trackers]'" if name in ("tensorboard", "wandb") else ""
            raise Refused(
                f"tracker {name} needs the package {package}, which is not installed; pip install {package}{extra}, "
                "or leave --tracker out."
            )


class Tracker:
    """All trackers of one run folder. They are told of every optimizer step, whenever the log is read.

    Steps are counted over all stages: some trackers refuse to go back. TensorBoard files are in the run folder's
    `tensorboard/`, those of an offline W&B run in its `wandb/`.

    Args:
        names: Of `config.TRACKERS`.
        folder: Of the run.
        settings: Of the run.
        on_cpu: Whether the run was told to stay on the CPU.

    Raises:
        Refused: One cannot start, such as W&B without a key.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any], *, on_cpu: bool) -> None:
        self._log_file = folder / "steps.jsonl"
        self._stage, self._base = "", 0
        self._waiting: dict[int, dict[str, float]] = {}
        self._before = os.environ.get("WANDB_SILENT")
        if display.mode in ("json", "quiet"):
            os.environ["WANDB_SILENT"] = "true"
        accelerator = Accelerator(cpu=on_cpu, log_with=list(names), project_dir=str(folder / "tensorboard"))
        own = {"wandb": {"name": folder.resolve().name, "dir": str(folder)}}
        config = {
            name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in settings.items()
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            accelerator.init_trackers(PROJECT, config, {name: own[name] for name in names if name in own})
        except Exception as error:  # each has errors of its own
            self._silence_over()
            hint = "; without a network or a key set WANDB_MODE=offline" if "wandb" in names else ""
            raise Refused(f"tracker {', '.join(names)} could not start ({first_line(error)}){hint}.") from None
        self._trackers: list[Any] = list(accelerator.trackers)

    def begin(self, stage: str, first: int) -> None:
        """A stage goes on from optimizer step `first`."""
        self._stage = stage
        self._base = sum("loss" in line for line in read_steps(self._log_file)) - first

    def lines(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Steps of the log: loss, learning rate, and rows and tokens a second of training time."""
        for line in lines:
            seconds = max(1e-9, line["seconds"])
            speeds = {f"{name}_per_second": line[name] / seconds for name in ("rows", "tokens")}
            self.scalars({"loss": line["loss"], "lr": line["lr"], **speeds}, line["step"])
        self._send()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step of the stage, under its name; sent with the next lines, since no tracker goes back."""
        waiting = self._waiting.setdefault(self._base + step, {})
        waiting.update({f"{self._stage}/{name}": value for name, value in values.items()})

    def _send(self) -> None:
        for step in sorted(self._waiting):
            self._tell(partial(_log, values=self._waiting.pop(step), step=step))

    def finish(self, metrics: Mapping[str, Any] | None) -> None:
        """The last numbers: every number of `metrics.json`, by its path."""
        final = dict(_numbers("final", metrics or {}))
        last = sum("loss" in line for line in read_steps(self._log_file))
        self._send()
        if final:
            self._tell(partial(_log, values=final, step=last))
        self._tell(lambda tracker: tracker.finish())
        self._silence_over()

    def _tell(self, tell: Callable[[Any], object]) -> None:
        for tracker in list(self._trackers):
            try:
                tell(tracker)
            except Exception as error:  # a run does not end because it cannot be watched
                self._trackers.remove(tracker)
                say(f"note: tracker {tracker.name} stopped ({first_line(error)}); the run goes on without it")

    def _silence_over(self) -> None:
        if self._before is None:
            os.environ.pop("WANDB_SILENT", None)


@contextmanager
def tracked(run: Any, *, main: bool = True) -> Iterator[None]:
    """Inside, what happens in a run folder is told to the trackers of its settings.

    Args:
        run: A `RunFolder`; its `tracker` is set meanwhile.
        main: Whether this process speaks for the job; else nothing is told.

    Raises:
        Refused: As `Tracker` and `require`.
    """
    names = trackers_of(run.config.tracker)
    if not (names and main) or run.metrics.exists():
        yield
        return
    require(run.config.tracker)
    run.tracker = Tracker(names, run.path, to_dict(run.config), on_cpu=run.config.device == "cpu")
    try:
        yield
    finally:
        run.tracker.finish(run.read_metrics() if run.metrics.exists() else None)
        run.tracker = None


def _log(tracker: Any, values: Mapping[str, float], step: int) -> None:
    tracker.log(values, step=step)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, Real) and not isinstance(value, bool):
        yield name, float(value)
