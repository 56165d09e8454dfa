"""Answers to questions: from start and end logits to text, and from text to a score."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PUNCTUATION = str.maketrans("", "", string.punctuation)
"""ASCII only, as in the official script."""


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and surplus blanks, in the order of SQuAD's `evaluate-v1.1.py`."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1 when the answer is one of the right ones, normalised; else 0."""
    return float(any(normalised(answer) == normalised(gold) for gold in golds))


def f1(answer: str, golds: Sequence[str]) -> float:
    """Overlap of words with the nearest right answer: harmonic mean of precision and recall, in 0..1."""
    return max(_overlap(normalised(answer).split(), normalised(gold).split()) for gold in golds)


def _overlap(answer: list[str], gold: list[str]) -> float:
    same = sum((Counter(answer) & Counter(gold)).values())
    if same == 0:  # also where both are empty, as in the official script
        return 0.0
    precision, recall = same / len(answer), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def best_spans(
    start: NDArray[Any],
    end: NDArray[Any],
    present: NDArray[np.bool_],
    context: NDArray[np.bool_],
    *,
    n_best: int,
    longest: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The best span of each window, as BERT's own SQuAD script finds it.

    The `n_best` highest starts and ends are combined; pairs that leave the context, run backwards or
    are too long are left out; the highest sum of logits wins, and on a tie the one ranked first.

    Args:
        start: Logits, `[windows, length]`.
        end: The same.
        present: Which places hold a token.
        context: Which of them belong to the context.
        n_best: Candidates for start and for end.
        longest: Longest span, in tokens.

    Returns:
        Score, first and last place, `[windows]` each. The score is -inf where no pair is left.
    """

    def highest(logits: NDArray[Any]) -> NDArray[np.int64]:
        return np.argsort(-np.where(present, logits, -np.inf), axis=1, kind="stable")[:, :n_best]

    firsts, lasts = highest(start), highest(end)  # [windows, n_best]
    pick = np.take_along_axis
    length = lasts[:, None, :] - firsts[:, :, None] + 1  # [windows, n_best, n_best]
    fits = (length >= 1) & (length <= longest)
    fits &= pick(context, firsts, 1)[:, :, None] & pick(context, lasts, 1)[:, None, :]
    sums = np.where(fits, pick(start, firsts, 1)[:, :, None] + pick(end, lasts, 1)[:, None, :], -np.inf)
    best = sums.reshape(len(sums), -1).argmax(1)
    row, ranks = np.arange(len(sums)), np.divmod(best, lasts.shape[1])
    return sums[row, ranks[0], ranks[1]].astype(np.float64), firsts[row, ranks[0]], lasts[row, ranks[1]]
