"""Text to batches, labels and metrics."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ..anatomy import Refused
from ..config.finetune import Data
from . import demo, files, glue, squad
from .examples import Examples
from .groups import for_tuning
from .predictions import Predictions
from .task import Task

__all__ = ["Examples", "Predictions", "Task", "load", "load_test"]

NAMES = (*glue.TASKS, *squad.TASKS, demo.CORPUS)
"""Tasks that are known by name."""


def load(data: Data) -> Task:
    """The task a configuration names, checked, and limited to the rows it asks for.

    Raises:
        Refused: No data is named, two are, or what is named cannot be used.
    """
    if data.task is not None and data.train_file is not None:
        raise Refused("give either --task or --train-file, not both.")
    if data.task is not None:
        task = _named(data.task, data)
    elif data.train_file is not None:
        task = files.load(
            data.train_file,
            validation_file=data.validation_file,
            text=data.text,
            text_pair=data.text_pair,
            label=data.label,
            problem=data.problem,
            seed=data.data_seed,
        )
    else:
        raise Refused(
            "no data: give --task with the name of one (and --data-dir for local files), or --train-file with your own."
        )
    if data.tuning:
        task = for_tuning(task, data.data_seed)
    return task.limited(data.train_rows, data.validation_rows, data.data_seed)


def load_test(data: Data) -> dict[str, Examples]:
    """The test rows of a task, by the names of the files their predictions are handed in as.

    Raises:
        Refused: The task has none, or they cannot be loaded.
    """
    if data.task in glue.TASKS:
        found = glue.load_test(data.task, data)
    elif data.task in squad.TASKS:
        found = squad.load_test(data.task, data)
    else:
        raise Refused(
            f"{data.task or data.train_file} has no test rows; use --split validation, or --file with new ones."
        )
    for file, examples in found.items():
        if len(examples) == 0:
            raise Refused(f"{data.task}: the test rows for {file} are empty.")
    return found


def near(name: str, names: Sequence[str]) -> str:
    """The end of a sentence about an unknown name: the nearest ones first, then all."""
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(close)}? There are" if close else "there are"
    return f"{meant} {', '.join(names)}."


def _named(name: str, data: Data) -> Task:
    if name == demo.CORPUS:
        return demo.load()
    if name in glue.TASKS:
        return glue.load(name, data)
    if name in squad.TASKS:
        return squad.load(name, data)
    raise Refused(f"unknown task {name!r}; {near(name, NAMES)}")
