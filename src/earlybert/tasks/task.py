"""What a task is: labelled text, label names, a metric. And the checks every data set passes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..anatomy import Refused
from ..config.finetune import Data
from .batches import Rows
from .encode import encode
from .examples import Examples
from .predictions import Predictions

Problem = Literal["classification", "regression", "span"]

UNBALANCED_NOTE = "a model that always says so scores as much"
UNSEEN_NOTE = "no validation row is of class"
LARGE_NOTE = "a model begins near 0 and learns such values slowly; divide them"
LARGE = 10.0
"""Values to regress on that are further than this from 0, or from one another, are pointed out: mean or standard
deviation."""
UNBALANCED = 0.8
"""A larger share of one class than this is pointed out: always guessing it would score as much."""


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
    others: Mapping[str, Examples] = field(default_factory=dict)
    """Further rows to validate on, scored under their names: MNLI's mismatched genres."""

    def __post_init__(self) -> None:
        for split, examples in (("train", self.train), ("validation", self.validation), *self.others.items()):
            if len(examples) == 0:
                raise Refused(f"{self.name}: the {split} data is empty.")
            if self.problem == "classification":
                _check_classes(self.name, split, examples.labels, len(self.labels))
            elif not np.isfinite(examples.labels).all():
                raise Refused(f"{self.name}: the {split} data has a label that is not a finite number.")
        if self.problem == "classification" and len(set(self.train.labels)) == 1:
            raise Refused(f"{self.name}: all training rows have the same label; there is nothing to learn.")
        # A sub-sample is looked at anew: what was said of the whole goes.
        ours = (UNBALANCED_NOTE, UNSEEN_NOTE, LARGE_NOTE)
        others = [note for note in self.notes if not any(mark in note for mark in ours)]
        object.__setattr__(self, "notes", (*others, *self._observed()))

    def _observed(self) -> list[str]:
        """Notes on the labels as they are now."""
        if self.problem == "regression":
            values = np.asarray(self.train.labels, dtype=np.float64)
            large = max(abs(values.mean()), values.std()) > LARGE
            return [f"training values go from {values.min():,g} to {values.max():,g}: {LARGE_NOTE}."] if large else []
        if self.problem == "span":
            return []
        counts, rows, notes = Counter(self.train.labels), len(self.train), list[str]()
        common, count = counts.most_common(1)[0]
        if count / rows >= UNBALANCED:
            known = {"f1": f"f1 (that of {self.labels[1]!r})"} if len(self.labels) == 2 else {}
            better = " or ".join(known.get(name, name) for name in self.metrics if name != "accuracy")
            notes.append(
                f"{count / rows:.0%} of the training rows are {self.labels[int(common)]!r}: {UNBALANCED_NOTE}"
                f"{f'; look at {better} as well' if better else ''}."
            )
        if unseen := sorted(set(counts) - set(self.validation.labels)):
            names = ", ".join(
                [*(repr(self.labels[int(number)]) for number in unseen[:5]), *["..."] * (len(unseen) > 5)]
            )
            notes.append(f"{UNSEEN_NOTE} {names}; the scores say nothing of such rows.")
        return notes

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
        if validation is not None:

            def some(examples: Examples) -> Examples:
                if validation >= len(examples):
                    return examples
                return examples.take(split_rows(examples.labels, validation / len(examples), self.problem, seed)[0])

            others = {name: some(examples) for name, examples in self.others.items()}
            limited = replace(limited, validation=some(self.validation), others=others)
        return limited

    @property
    def target(self) -> str:
        """What is predicted, in words."""
        return "values to regress on" if self.problem == "regression" else f"{len(self.labels)} classes"

    def encode(self, examples: Examples, tokenizer: Any, data: Data) -> tuple[Rows, int]:
        """Tokenise rows of this task; also how many of them were cut."""
        return encode(examples, tokenizer, data.max_length)

    def cut_note(self, cut: int, data: Data) -> str:
        """What to say when training rows were cut."""
        return f"{cut:,} of {len(self.train):,} training rows are longer than {data.max_length} tokens and are cut."

    def predictions(self, examples: Examples, rows: Rows, read: NDArray[Any]) -> Predictions:
        """What was predicted of these rows.

        Args:
            examples: The rows as text.
            rows: The same, as `encode` gave them.
            read: What `rows.read` made of the model's outputs, in order.
        """
        labels = np.asarray(examples.labels, dtype=np.float64 if self.problem == "regression" else np.int64)
        ids = None if examples.ids is None else tuple(examples.ids)
        return Predictions(read, labels, self.metrics, len(self.labels), ids=ids)


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
