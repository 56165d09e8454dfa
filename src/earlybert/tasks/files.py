"""A person's own CSV, TSV or JSON-lines files with named columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..anatomy import Refused
from ..config.checks import shown
from .examples import Examples
from .source import listed
from .table import read, suffix
from .task import Problem, Task, hold_out

MANY_CLASSES = 50
"""More labels than this look like values, or like the wrong column: ask."""
WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")
"""A whole number that is written with a fraction of zeros."""


def load(
    train_file: str,
    *,
    validation_file: str | None,
    text: str,
    text_pair: str | None,
    label: str,
    problem: Literal["auto", "classification", "regression"],
    seed: int,
) -> Task:
    """Read files into a task. Without a validation file a stratified tenth of train is held out.

    Args:
        train_file: `.csv`, `.tsv` or `.jsonl`, with `.gz` behind it or not; see `table.read`.
        validation_file: The same, or None.
        text: Column of the (first) text.
        text_pair: Column of the second text, or None.
        label: Column of the label: class names or numbers, or a value for regression.
        problem: `auto` takes numbers with fractions for values and everything else for classes.
        seed: Of the held-out tenth.

    Raises:
        Refused: A file or column is missing, a cell is empty, or the labels do not fit the problem.
    """
    columns = [column for column in (text, text_pair, label) if column is not None]
    rows = read(Path(train_file), columns)
    labels = [row[label] for row in rows]
    kind = _problem(labels, label, problem)
    names = ("value",) if kind == "regression" else _class_names(labels)
    train = _examples(rows, text, text_pair, label, kind, names, train_file)
    notes: tuple[str, ...] = ()
    if validation_file is None:
        train, validation = hold_out(train, kind, seed)
        if not len(validation):
            raise Refused(
                f"data file {train_file} has too few rows to hold some out ({len(rows)}); give --validation-file, too."
            )
        notes = (
            f"no validation file: {len(validation)} of {len(rows)} training rows were held out for it (seed {seed}).",
        )
    else:
        held = read(Path(validation_file), columns)
        validation = _examples(held, text, text_pair, label, kind, names, validation_file)
    for file, examples in ((train_file, train), (validation_file or "", validation)):
        notes += quoted(file, examples)
    if known := _known(train, validation):
        notes += (
            f"{known} of {len(validation)} validation rows are in the training data, too, word for word: on new text "
            "expect a lower score.",
        )
    metrics = ("pearson", "spearman") if kind == "regression" else ("accuracy", "macro_f1", "matthews")
    return Task(Path(train_file).name.split(".")[0], kind, names, train, validation, metrics, notes)


def unlabelled(file: str, *, text: str, text_pair: str | None) -> Examples:
    """New rows of a file that has no labels, or whose labels are left alone; they are numbered from 0.

    Args:
        file: As `load` takes them.
        text: Column of the (first) text.
        text_pair: Column of the second text, or None.

    Raises:
        Refused: The file or a column is missing, or a cell is empty.
    """
    rows = read(Path(file), [column for column in (text, text_pair) if column is not None])
    pairs = None if text_pair is None else _texts(rows, text_pair, file)
    return Examples(_texts(rows, text, file), pairs, [0] * len(rows), _numbers(rows))


def _numbers(rows: Sequence[Any]) -> list[str]:
    """Row numbers in a file, from 0."""
    return [str(number) for number in range(len(rows))]


def quoted(file: str, examples: Examples) -> tuple[str, ...]:
    """A note on texts of a TSV that look quoted, if there are any.

    Args:
        file: Where they were read.
        examples: The texts.
    """
    if suffix(Path(file)) != ".tsv":
        return ()
    texts = [*examples.texts, *(examples.pairs or ())]
    count = sum(len(text) > 1 and text[0] == text[-1] == '"' for text in texts)
    if not count:
        return ()
    return (
        f"{count} of {len(texts)} texts in {file} begin and end with a double quote, which stays in them: .tsv files "
        "are read without quoting; a .csv is read with it.",
    )


def _known(train: Examples, validation: Examples) -> int:
    """Validation rows whose text, or both texts, are also those of a training row."""
    seen = set(_pairs(train))
    return sum(pair in seen for pair in _pairs(validation))


def _pairs(examples: Examples) -> list[tuple[str, str]]:
    return list(zip(examples.texts, examples.pairs or [""] * len(examples), strict=True))


def _problem(labels: Sequence[Any], column: str, wanted: str) -> Problem:
    if any(isinstance(label, (list, dict)) for label in labels):
        raise Refused(f"column {column!r} holds several labels a row; multi-label tasks are not supported.")
    numbers = [_number(label) for label in labels]
    if wanted == "regression":
        missing = next((row for row, number in enumerate(numbers, start=1) if number is None), None)
        if missing is not None:
            raise Refused(
                f"column {column!r}, row {missing}: {shown(labels[missing - 1])} is not a number to regress on."
            )
        return "regression"
    if wanted == "classification":
        return "classification"
    odd = [row for row, number in enumerate(numbers, start=1) if number is None]
    if odd and len(odd) < len(numbers) / 2:
        raise Refused(
            f"column {column!r} holds numbers, but not in row {odd[0]} ({shown(labels[odd[0] - 1])}); mend it, or say "
            "--problem classification."
        )
    if not odd and any(number != int(number) for number in numbers if number is not None):
        return "regression"
    if len({_name(label) for label in labels}) > MANY_CLASSES:
        raise Refused(
            f"column {column!r} holds {len({_name(label) for label in labels})} different labels; is it the right "
            "column? Say --problem classification if it is, or --problem regression."
        )
    return "classification"


def _number(label: Any) -> float | None:
    if isinstance(label, bool):
        return None
    try:
        number = float(label)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def _name(label: Any) -> str:
    """A label as text; 1, 1.0 and "1.0" are one class. Other text stays as written: 007, 1e3 and 1_000 are codes."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    written = str(label).strip()
    whole = WHOLE.fullmatch(written)
    return whole[1] if whole else written


def _class_names(labels: Sequence[Any]) -> tuple[str, ...]:
    """Distinct labels as text; numbers in their own order, names by the alphabet."""
    names = {_name(label) for label in labels}
    return tuple(sorted(names, key=lambda name: (_number(name) is None, _number(name) or 0.0, name)))


def _examples(
    rows: Sequence[Mapping[str, Any]],
    text: str,
    text_pair: str | None,
    label: str,
    problem: Problem,
    names: tuple[str, ...],
    where: str,
) -> Examples:
    labels: list[Any]
    if problem == "regression":
        labels = [_number(row[label]) for row in rows]
        unfit = next((number for number, value in enumerate(labels, start=1) if value is None), None)
        expected = "a number"
    else:
        place = {name: number for number, name in enumerate(names)}
        labels = [place.get(_name(row[label])) for row in rows]
        unfit = next((number for number, value in enumerate(labels, start=1) if value is None), None)
        expected = f"one of the training labels ({listed(names)})"
    if unfit is not None:
        raise Refused(f"data file {where}, row {unfit}: label {shown(rows[unfit - 1][label])} is not {expected}.")
    pairs = None if text_pair is None else _texts(rows, text_pair, where)
    return Examples(_texts(rows, text, where), pairs, labels, _numbers(rows))


def _texts(rows: Sequence[Mapping[str, Any]], column: str, where: str) -> list[str]:
    """A column as text. Numbers are; lists and objects would be trained on with their brackets."""
    for number, row in enumerate(rows, start=1):
        if isinstance(row[column], (list, dict)):
            kind = "a list" if isinstance(row[column], list) else "an object"
            raise Refused(f"data file {where}, row {number}: column {column!r} holds {kind}, not a text.")
    return [str(row[column]) for row in rows]
