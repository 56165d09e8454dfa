"""SQuAD v1.1 (Rajpurkar et al. 2016), and local data of its form: a question, a context, a span that answers it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..anatomy import Refused
from ..config.finetune import Data
from ..data import hub
from .answers import exact_match, f1
from .batches import Rows
from .examples import Examples
from .predictions import Predictions
from .source import read_jsonl, require
from .task import Task
from .windows import LONGEST_QUESTION, Answer, Windows, windows

TASKS: dict[str, str | None] = {"squad": "rajpurkar/squad", "qamr": None}
"""Where each is on the hub; None is read from local files only."""
COLUMNS = ("id", "context", "question")


@dataclass(frozen=True)
class Questions(Examples):
    """Questions as `texts`, contexts as `pairs`; `labels` are ones, the score of a right answer."""

    golds: Sequence[Sequence[Answer]] = field(default_factory=list)
    """Right answers of each question: text, and the place of its first character in the context."""

    @classmethod
    def of(
        cls, ids: Sequence[str], questions: Sequence[str], contexts: Sequence[str], golds: Sequence[Sequence[Answer]]
    ) -> Questions:
        """Questions by their columns."""
        return cls(questions, contexts, [1.0] * len(questions), ids, golds)

    @property
    def contexts(self) -> Sequence[str]:
        """Where the answers are."""
        assert self.pairs is not None
        return self.pairs

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> Questions:
        """These questions, in this order."""
        ids = self.ids
        assert ids is not None
        columns = ([column[row] for row in rows] for column in (ids, self.texts, self.contexts, self.golds))
        return Questions.of(*columns)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Squad(Task):
    """Questions to train and to validate on. F1 is the paper's metric, exact match the other official one."""

    @property
    def target(self) -> str:
        """What is predicted, in words."""
        return "a span of the context to answer each"

    def encode(self, examples: Examples, tokenizer: Any, data: Data) -> tuple[Rows, int]:
        """Windows of these questions; also how many questions were cut."""
        assert isinstance(examples, Questions)
        return windows(
            examples.texts,
            examples.contexts,
            examples.golds,
            tokenizer,
            max_length=data.max_length,
            stride=data.stride,
            n_best=data.n_best,
            longest_answer=data.max_answer_length,
        )

    def cut_note(self, cut: int, data: Data) -> str:
        """What to say when questions were cut."""
        return f"{cut:,} of {len(self.train):,} questions are longer than {LONGEST_QUESTION} tokens and are cut."

    def predictions(self, examples: Examples, rows: Rows, read: NDArray[Any]) -> Predictions:
        """The answer to each question and its scores; they are not a number where the right answer is not known."""
        assert isinstance(examples, Questions)
        assert isinstance(rows, Windows)
        answers = rows.answers(read, examples.contexts)
        scores = {name: np.full(len(answers), np.nan) for name in self.metrics}
        for row, (answer, golds) in enumerate(zip(answers, examples.golds, strict=True)):
            if texts := [text for text, _ in golds]:
                scores["f1"][row], scores["exact_match"][row] = f1(answer, texts), exact_match(answer, texts)
        ids = None if examples.ids is None else tuple(examples.ids)
        values = scores.pop(self.metrics[0])
        ones = np.ones(len(answers))
        return Predictions(values, ones, self.metrics, 0, ids=ids, answers=tuple(answers), extra=scores)


def load(name: str, data: Data) -> Squad:
    """Questions to train and to validate on.

    Args:
        name: A key of `TASKS`.
        data: Of which `data_dir` is a folder with `<name>/train.jsonl.gz` and `<name>/validation.jsonl.gz`, one
            JSON object a line with the hub's columns (id, context, question, answers); None loads from the hub.

    Raises:
        Refused: The files are missing or broken, or the hub cannot be reached; an answer is not where it is said
            to be and `bad_answers` is `refuse`.
    """
    splits: dict[str, Questions] = {}
    notes: list[str] = []
    for split in ("train", "validation"):
        rows, where = _rows(name, split, data)
        splits[split], bad = _questions(rows, where)
        if bad and data.bad_answers == "refuse":
            raise Refused(f"{_complaint(bad, rows, where)}; mend them, or leave them out with --bad-answers drop.")
        if bad:
            notes.append(f"{_complaint(bad, rows, where)}; left out.")
            splits[split] = splits[split].take([row for row in range(len(rows)) if row not in set(bad)])
    metrics = ("f1", "exact_match")
    return Squad(name, "span", (), splits["train"], splits["validation"], metrics, tuple(notes))


def load_test(name: str, data: Data) -> dict[str, Examples]:
    """Test questions, with or without answers, from `<name>/test.jsonl.gz`.

    Raises:
        Refused: There are none: SQuAD keeps its own.
    """
    if data.data_dir is None:
        raise Refused(f"the test questions of {name} are not public; use --split validation.")
    rows, where = _rows(name, "test", data)
    return {"predictions": _questions(rows, where, labelled=False)[0]}


def submission(answers: Sequence[str], ids: Sequence[str]) -> str:
    """Answers as the official script reads them: one JSON object, text by question id."""
    return json.dumps(dict(zip(ids, answers, strict=True)), ensure_ascii=False, indent=1) + "\n"


def _rows(name: str, split: str, data: Data) -> tuple[list[dict[str, Any]], str]:
    """The rows of a split, and what to call them."""
    repository = TASKS[name]
    if data.data_dir is not None:
        path = Path(data.data_dir) / name / f"{split}.jsonl.gz"
        return read_jsonl(path), f"data file {path}"
    if repository is None:
        raise Refused(f"{name} is read from local files only; give --data-dir.")
    return hub.split(repository, None, split, offline=data.offline), f"{repository} ({split})"


def _questions(rows: Sequence[Mapping[str, Any]], where: str, *, labelled: bool = True) -> tuple[Questions, list[int]]:
    """Questions, and the numbers of those with an answer that is not where it is said to be."""
    require(rows, (*COLUMNS, "answers") if labelled else COLUMNS, where)
    for number, row in enumerate(rows, start=1):
        for column in ("context", "question"):
            if not isinstance(row[column], str) or not row[column].strip():
                raise Refused(f"{where}: row {number} has {row[column]!r} as {column!r}, which is not text.")
    ids = [str(row["id"]) for row in rows]
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise Refused(f"{where}: the id {twice!r} is there twice; predictions are told apart by it.")
    golds = [_golds(row.get("answers"), f"{where}: row {number}", labelled) for number, row in enumerate(rows, start=1)]
    contexts = [row["context"] for row in rows]
    bad = [
        row
        for row, (context, answers) in enumerate(zip(contexts, golds, strict=True))
        if any(not _stands(answer, context) for answer in answers)
    ]
    return Questions.of(ids, [row["question"] for row in rows], contexts, golds), bad


def _golds(answers: Any, where: str, labelled: bool) -> list[Answer]:
    if answers is None and not labelled:
        return []
    texts, begins = (answers.get("text"), answers.get("answer_start")) if isinstance(answers, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(begins, list) or len(texts) != len(begins):
        raise Refused(f"{where}: 'answers' must hold two lists of one length, 'text' and 'answer_start'.")
    if not all(isinstance(text, str) for text in texts) or not all(type(begin) is int for begin in begins):
        raise Refused(f"{where}: 'answers' must hold texts, and whole numbers as their 'answer_start'.")
    if labelled and not texts:
        raise Refused(f"{where} has no answer; questions without one (SQuAD v2.0) are not supported.")
    return list(zip(texts, begins, strict=True))


def _stands(answer: Answer, context: str) -> bool:
    """Whether an answer is where it is said to be."""
    text, begin = answer
    return bool(text) and begin >= 0 and context[begin : begin + len(text)] == text


def _complaint(bad: Sequence[int], rows: Sequence[Mapping[str, Any]], where: str) -> str:
    row = rows[bad[0]]
    answers = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    text, begin = next(answer for answer in answers if not _stands(answer, row["context"]))
    there = row["context"][max(begin, 0) :][: len(text)]
    return (
        f"{where}: {len(bad):,} of {len(rows):,} questions have an answer that is not at its answer_start (the first: "
        f"id {row['id']}, {text[:60]!r} at {begin}, where {there[:60]!r} stands)"
    )
