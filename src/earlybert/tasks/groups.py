"""A part of train to tune on: rows that share a text never end up on both sides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..anatomy import Refused
from .examples import Examples
from .task import Task

SHARE = 0.1
"""Of the training rows that is held out to tune on."""


def for_tuning(task: Task, seed: int, share: float = SHARE) -> Task:
    """The task with a grouped part of its train as validation; its own validation rows are left alone.

    Args:
        task: The whole task.
        seed: Of the choice of groups.
        share: Of the training rows to hold out, about.

    Raises:
        Refused: The rows hang together so closely that no part of them can be taken out.
    """
    group = groups(task.train)
    sizes = np.bincount(group)
    wanted = share * len(group)
    held = np.zeros(len(sizes), dtype=bool)
    total = 0
    for number in np.random.default_rng(seed).permutation(len(sizes)):
        if total + sizes[number] <= wanted:
            held[number] = True
            total += sizes[number]
    if total < wanted / 2:
        raise Refused(f"{task.name}: so many training rows share texts that none can be held out to tune on.")
    validation = held[group]
    return replace(
        task,
        train=task.train.take(np.flatnonzero(~validation)),
        validation=task.train.take(np.flatnonzero(validation)),
        others={},
        notes=(
            *task.notes,
            f"tuning: {total:,} training rows are held out to validate on; rows that share a text go together.",
        ),
    )


def groups(examples: Examples) -> NDArray[np.intp]:
    """A number for each row, `[rows]`, equal where rows share a premise, hypothesis, question or context.

    Texts count as equal up to case and blanks. Chains are followed: a row that shares one text with
    one row and another text with a second puts all three together.
    """
    parent = list(range(len(examples)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[str, int] = {}
    for column in (examples.texts, examples.pairs or ()):
        for row, text in enumerate(column):
            other = first.setdefault(" ".join(text.lower().split()), row)
            parent[root(row)] = root(other)
    return np.unique([root(row) for row in range(len(examples))], return_inverse=True)[1]
