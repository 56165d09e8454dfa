"""What a model said of every row, kept beside the right answers, so that any score can be had later."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..anatomy import Refused
from ..ticket.tensors import Kind, typed
from .metrics import METRICS, compute

FILE = Kind("predictions file", "earlybert-predictions-1", "evaluate the run again")
MOST_CLASSES = 1 << 16
"""A file that speaks of more is not believed: scores take memory by the number of classes."""


@dataclass(frozen=True)
class Predictions:
    """Predictions and labels of one set of rows, in the order of the rows.

    Raises:
        Refused: The columns are not of one length.
    """

    values: NDArray[Any]
    """`[rows]`: class numbers (int64), regressed values (float64), or each question's own score in 0..1 (float64)."""
    labels: NDArray[Any]
    """`[rows]`: what `values` should be; ones for questions."""
    metrics: tuple[str, ...]
    """Names in `score()`; the first is the headline and, for questions, what `values` are."""
    classes: int
    """How many the task has; 1 for regression, 0 for questions, which are scored one by one and averaged."""
    ids: tuple[str, ...] | None = None
    """The rows' own names, where the data has them."""
    answers: tuple[str, ...] | None = None
    """For questions: the text that was answered."""
    extra: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """For questions: the other metrics, `[rows]` each."""
    also: Mapping[str, Predictions] = field(default_factory=dict)
    """The same for further sets of rows, scored under their names (`accuracy_mismatched`)."""

    def __post_init__(self) -> None:
        columns = [self.labels, *self.extra.values(), *(x for x in (self.ids, self.answers) if x is not None)]
        if any(len(column) != len(self.values) for column in columns):
            raise Refused(f"predictions need columns of one length, got {[len(self.values), *map(len, columns)]}.")
        known = (*self.metrics[:1], *self.extra) if self.classes == 0 else tuple(METRICS)
        unknown = [name for name in self.metrics if name not in known]
        if unknown or not self.metrics:
            raise Refused(f"predictions need metrics among {', '.join(known)}, got {', '.join(unknown) or 'none'}.")

    def __len__(self) -> int:
        return len(self.values)

    def score(self) -> dict[str, float]:
        """Each metric as a fraction, the headline first, those of `also` last."""
        if self.classes == 0:
            columns = {self.metrics[0]: self.values, **self.extra}
            found = {name: float(columns[name].mean()) for name in self.metrics}
        else:
            found = compute(self.metrics, self.values, self.labels, classes=self.classes)
        for name, other in self.also.items():
            found |= {f"{metric}_{name}": value for metric, value in other.score().items()}
        return found

    def take(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> Predictions:
        """These rows, repeats allowed, without `also`: for resampling."""
        places = np.asarray(rows)

        def pick(column: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if column is None else tuple(column[place] for place in places)

        extra = {name: column[places] for name, column in self.extra.items()}
        return replace(
            self,
            values=self.values[places],
            labels=self.labels[places],
            ids=pick(self.ids),
            answers=pick(self.answers),
            extra=extra,
            also={},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as safetensors; whole or not at all."""
        tensors, about = self._plain("")
        FILE.write(path, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Predictions:
        """Read a predictions file.

        Raises:
            Refused: The file is missing or is not one.
        """
        with FILE.reading(path):
            about, tensors = FILE.read(path, framework="np")
            try:
                return cls._of_plain(tensors, about, "")
            except Refused as error:
                raise ValueError from error

    def _plain(self, prefix: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Tensors by name, and everything else as JSON."""
        columns = {"values": self.values, "labels": self.labels, **{f"extra.{n}": c for n, c in self.extra.items()}}
        tensors = {prefix + name: np.ascontiguousarray(column) for name, column in columns.items()}
        about: dict[str, Any] = {
            "metrics": self.metrics,
            "classes": self.classes,
            "ids": self.ids,
            "answers": self.answers,
            "extra": list(self.extra),
            "also": {},
        }
        for name, other in self.also.items():
            more, about["also"][name] = other._plain(f"{prefix}also.{name}.")
            tensors |= more
        return tensors, about

    @classmethod
    def _of_plain(cls, tensors: Mapping[str, NDArray[Any]], about: Mapping[str, Any], prefix: str) -> Predictions:
        if not all(isinstance(name, str) for name in (*about["metrics"], *about["extra"])):
            raise TypeError
        typed(about, metrics=list, classes=int, extra=list, also=dict, ids=list | None, answers=list | None)
        texts = {name: None if about[name] is None else tuple(map(str, about[name])) for name in ("ids", "answers")}
        columns = [
            tensors[prefix + name] for name in ("values", "labels", *(f"extra.{name}" for name in about["extra"]))
        ]
        _hold(columns, about["classes"], about["metrics"])
        return cls(
            tensors[f"{prefix}values"],
            tensors[f"{prefix}labels"],
            tuple(about["metrics"]),
            about["classes"],
            ids=texts["ids"],
            answers=texts["answers"],
            extra={name: tensors[f"{prefix}extra.{name}"] for name in about["extra"]},
            also={
                name: cls._of_plain(tensors, other, f"{prefix}also.{name}.") for name, other in about["also"].items()
            },
        )


def _hold(columns: Sequence[NDArray[Any]], classes: int, metrics: Sequence[str]) -> None:
    """Whether scores can be had of what a file says: values, labels and further columns.

    Raises:
        ValueError: They cannot.
    """
    for column in columns:
        if column.ndim != 1 or not len(column) or column.dtype.kind not in "iuf" or not np.isfinite(column).all():
            raise ValueError
    if not 0 <= classes <= MOST_CLASSES or (classes == 1 and not {*metrics} <= {"pearson", "spearman"}):
        raise ValueError
    for column in columns[:2]:
        if classes > 1 and (column.dtype.kind == "f" or column.min() < 0 or column.max() >= classes):
            raise ValueError
