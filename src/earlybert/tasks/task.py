"""What a task is: labelled text, label names, a metric. And the checks every data set passes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..anatomy import Refused

Problem = Literal["classification", "regression"]

UNBALANCED_NOTE = "a model that always says so scores as much"
UNBALANCED = 0.8
"""A larger share of one class than this is pointed out: always guessing it would score as much."""


@dataclass(frozen=True)
class Examples:
    """Rows of text with labels."""

    texts: Sequence[str]
    pairs: Sequence[str] | None
    """The second text of each row, for tasks on two."""
    labels: Sequence[int] | Sequence[float]
    """Class numbers from 0, or values for regression."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> Examples:
        """These rows, in this order."""
        return Examples(
            [self.texts[row] for row in rows],
            None if self.pairs is None else [self.pairs[row] for row in rows],
            [self.labels[row] for row in rows],  # pyright: ignore[reportArgumentType]
        )


@dataclass(frozen=True)
class Task:
    """Text to train and to validate on, and how it is scored.

    Raises:
        Refused: A split is empty, a label is out of range, or there is one class only.
    """

    name: str
    problem: Problem
    labels: tuple[str, ...]
    """Class names; one made-up name for regression."""
    train: Examples
    validation: Examples
    metrics: tuple[str, ...] = ("accuracy",)
    """Names from `tasks.metrics`; the first is the headline."""
    notes: tuple[str, ...] = field(default_factory=tuple)
    """Sentences the person should see before training."""

    def __post_init__(self) -> None:
        for split, examples in (("train", self.train), ("validation", self.validation)):
            if len(examples) == 0:
                raise Refused(f"{self.name}: the {split} data is empty.")
            if self.problem == "classification":
                _check_classes(self.name, split, examples.labels, len(self.labels))
            elif not all(np.isfinite(examples.labels)):
                raise Refused(f"{self.name}: the {split} data has a label that is not a finite number.")
        if self.problem == "classification":
            counts = Counter(self.train.labels)
            if len(counts) == 1:
                raise Refused(f"{self.name}: all training rows have the same label; there is nothing to learn.")
            common, count = counts.most_common(1)[0]
            if count / len(self.train) >= UNBALANCED:
                note = (
                    f"{count / len(self.train):.0%} of the training rows are {self.labels[int(common)]!r}: "
                    f"{UNBALANCED_NOTE}; look at F1 or Matthews as well."
                )
                others = tuple(other for other in self.notes if UNBALANCED_NOTE not in other)
                object.__setattr__(self, "notes", (*others, note))

    def limited(self, train: int | None, validation: int | None, seed: int) -> Task:
        """The task on a random sub-sample with the classes in proportion.

        Args:
            train: Rows to keep, all if there are fewer or None is given.
            validation: The same for validation.
            seed: Of the sample.
        """
        limited = self
        if train is not None and train < len(self.train):
            kept, _ = split_rows(self.train.labels, train / len(self.train), self.problem, seed)
            limited = replace(limited, train=self.train.take(kept))
        if validation is not None and validation < len(self.validation):
            kept, _ = split_rows(self.validation.labels, validation / len(self.validation), self.problem, seed)
            limited = replace(limited, validation=self.validation.take(kept))
        return limited


def split_rows(
    labels: Sequence[int] | Sequence[float], share: float, problem: Problem, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row numbers in a random part of about `share` and in the rest, classes in proportion.

    A class with two rows or more is in both parts. Row numbers are sorted.
    """
    random = np.random.default_rng(seed)
    values = np.asarray(labels)
    groups = [np.flatnonzero(values == value) for value in np.unique(values)] if problem == "classification" else []
    groups = groups or [np.arange(len(values))]
    sizes = _apportion(share, [len(group) for group in groups])
    part = [random.permutation(group)[:size] for group, size in zip(groups, sizes, strict=True)]
    chosen = np.sort(np.concatenate(part))
    rest = np.setdiff1d(np.arange(len(values)), chosen)
    return chosen, rest


def _apportion(share: float, counts: Sequence[int]) -> list[int]:
    """`share` of each count, rounded so that the sum is right (largest remainders), both parts non-empty."""
    exact = [share * count for count in counts]
    sizes = [int(value) for value in exact]
    missing = int(np.floor(sum(exact) + 0.5)) - sum(sizes)
    for place in np.argsort([size - value for size, value in zip(sizes, exact, strict=True)], kind="stable")[:missing]:
        sizes[place] += 1
    return [min(max(size, 1), count - 1) if count > 1 else size for size, count in zip(sizes, counts, strict=True)]


def hold_out(examples: Examples, problem: Problem, seed: int, share: float = 0.1) -> tuple[Examples, Examples]:
    """Split off a stratified part of the training rows for validation: (train, validation)."""
    held, kept = split_rows(examples.labels, share, problem, seed)
    return examples.take(kept), examples.take(held)


def _check_classes(name: str, split: str, labels: Sequence[int] | Sequence[float], classes: int) -> None:
    for row, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < classes:
            raise Refused(
                f"{name}: row {row + 1} of the {split} data has label {label!r}; labels are 0 to {classes - 1}."
            )
