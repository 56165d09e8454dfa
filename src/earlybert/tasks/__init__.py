"""Text to batches, labels and metrics."""

from __future__ import annotations

from ..anatomy import Refused
from ..config import Data
from . import demo, files, glue
from .task import Examples, Task

__all__ = ["Examples", "Task", "load"]


def load(data: Data, seed: int) -> Task:
    """The task a configuration names, checked, and limited to the rows it asks for.

    Raises:
        Refused: No data is named, two are, or what is named cannot be used.
    """
    if data.task is not None and data.train_file is not None:
        raise Refused("give either --task or --train-file, not both.")
    if data.task == demo.CORPUS:
        task = demo.load()
    elif data.task is not None:
        if data.task not in glue.TASKS:
            raise Refused(f"unknown task {data.task!r}; there are {', '.join((*glue.TASKS, demo.CORPUS))}.")
        task = glue.load(data.task, data.data_dir)
    elif data.train_file is not None:
        task = files.load(
            data.train_file,
            validation_file=data.validation_file,
            text=data.text,
            text_pair=data.text_pair,
            label=data.label,
            problem=data.problem,
            seed=seed,
        )
    else:
        raise Refused(
            "no data: give --task with a GLUE task (and --data-dir for local files), or --train-file with your own."
        )
    return task.limited(data.train_rows, data.validation_rows, seed)
