"""Questions and their contexts as overlapping windows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..anatomy import Refused
from .answers import best_spans
from .batches import Rows
from .encode import refuse_unknown, refuse_unpadded

LONGEST_QUESTION = 64
"""Tokens of a question, as in BERT's own SQuAD script; longer ones are cut."""
CHUNK = 1024
"""Questions tokenised at once."""

Answer = tuple[str, int]
"""Text and the place of its first character in the context."""


@dataclass(frozen=True, kw_only=True)
class Windows(Rows):
    """Windows of tokens, in the order of their questions. A window without the answer has the first token as target."""

    question: NDArray[np.int64]
    """Number of each window's question, `[windows]`."""
    first: NDArray[np.int64]
    """Place of the first token of the context, `[windows]`."""
    offsets: Sequence[NDArray[np.int32]]
    """For each window: where its context tokens begin and end in the context, `[context tokens, 2]` characters."""
    n_best: int
    longest_answer: int

    def read(self, output: Any, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The best span of each window: score, first and last token counted within the context, `[windows, 3]`."""
        start, end = (logits.float().cpu().numpy() for logits in (output.start_logits, output.end_logits))
        places = np.arange(start.shape[1])
        first = self.first[rows][:, None]
        stop = first + np.array([len(self.offsets[row]) for row in rows])[:, None]
        length = np.array([len(self.input_ids[row]) for row in rows])[:, None]
        score, begin, last = best_spans(
            start,
            end,
            places < length,
            (places >= first) & (places < stop),
            n_best=self.n_best,
            longest=self.longest_answer,
        )
        return np.stack([score, begin - first[:, 0], last - first[:, 0]], axis=1).astype(np.float64)

    def answers(self, read: NDArray[np.float64], contexts: Sequence[str]) -> list[str]:
        """The text of the best span over all windows of each question; empty where there is none.

        Args:
            read: What `read` gave for every window, in order.
            contexts: Of the questions.
        """
        found = [""] * len(contexts)
        best = np.full(len(contexts), -np.inf)
        for window, (score, begin, last) in enumerate(read):
            question = self.question[window]
            if score > best[question]:
                best[question] = score
                offsets = self.offsets[window]
                found[question] = contexts[question][offsets[int(begin), 0] : offsets[int(last), 1]]
        return found


def windows(
    questions: Sequence[str],
    contexts: Sequence[str],
    golds: Sequence[Sequence[Answer]],
    tokenizer: Any,
    *,
    max_length: int,
    stride: int,
    n_best: int,
    longest_answer: int,
) -> tuple[Windows, int]:
    """Tokenise questions, each with as many windows on its context as it takes.

    Args:
        questions: What is asked.
        contexts: Where the answers are.
        golds: Right answers of each question; the first is the target, and there may be none.
        tokenizer: A fast one of `transformers`.
        max_length: Tokens of a window, question and special tokens included.
        stride: Tokens that neighbouring windows share.
        n_best: Candidates for start and for end.
        longest_answer: In tokens.

    Returns:
        The windows, and how many questions were cut.

    Raises:
        Refused: The tokenizer is not a fast one, has no padding, or does not know the text; or no room is left.
    """
    refuse_unpadded(tokenizer)
    if not tokenizer.is_fast:
        raise Refused("questions need a fast tokenizer (one with tokenizer.json), which knows where its tokens stand.")
    ids: list[NDArray[np.int32]] = []
    types: list[NDArray[np.int32]] = []
    question: list[int] = []
    first: list[int] = []
    offsets: list[NDArray[np.int32]] = []
    cut = 0
    for begin in range(0, len(questions), CHUNK):
        part = slice(begin, begin + CHUNK)
        encoded, were_cut = _tokenised(questions[part], contexts[part], tokenizer, max_length, stride)
        cut += were_cut
        question += [begin + number for number in encoded["overflow_to_sample_mapping"]]
        ids += [np.array(row, dtype=np.int32) for row in encoded["input_ids"]]
        types += [np.array(row, dtype=np.int32) for row in encoded.get("token_type_ids", [])]
        for encoding in encoded.encodings:
            inside = np.array([part == 1 for part in encoding.sequence_ids])
            first.append(int(inside.argmax()) if inside.any() else len(inside))
            offsets.append(np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)[inside])
    refuse_unknown([row.tolist() for row in ids], tokenizer)
    targets = [_target(golds[row], place, marks) for row, place, marks in zip(question, first, offsets, strict=True)]
    starts, ends = ([target[side] for target in targets] for side in (0, 1))
    made = Windows(
        ids,  # pyright: ignore[reportArgumentType] # an array is a sequence of its integers
        types or None,  # pyright: ignore[reportArgumentType]
        {"start_positions": starts, "end_positions": ends},
        tokenizer.pad_token_id,
        max_length,
        question=np.array(question, dtype=np.int64),
        first=np.array(first, dtype=np.int64),
        offsets=offsets,
        n_best=n_best,
        longest_answer=longest_answer,
    )
    return made, cut


def _tokenised(
    questions: Sequence[str], contexts: Sequence[str], tokenizer: Any, max_length: int, stride: int
) -> tuple[Any, int]:
    """Windows as a fast tokenizer makes them, and how many questions were cut."""
    asked, cut, longest = _shortened(questions, tokenizer)
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - longest
    if room <= stride:
        raise Refused(
            f"windows of max_length {max_length} leave {max(room, 0)} tokens to the context of a question with "
            f"{longest}, which must be more than the stride of {stride}; raise --max-length or lower --stride."
        )
    encoded = tokenizer(
        asked,
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
    )
    return encoded, cut


def _shortened(questions: Sequence[str], tokenizer: Any) -> tuple[list[str], int, int]:
    """Questions of at most `LONGEST_QUESTION` tokens, how many were cut, and the tokens of the longest."""
    asked = [question.lstrip() for question in questions]  # as the reference script does
    encodings = tokenizer(asked, add_special_tokens=False).encodings
    long = [row for row, encoding in enumerate(encodings) if len(encoding) > LONGEST_QUESTION]
    for row in long:
        asked[row] = asked[row][: encodings[row].offsets[LONGEST_QUESTION - 1][1]]
    return asked, len(long), max(min(len(encoding), LONGEST_QUESTION) for encoding in encodings)


def _target(golds: Sequence[Answer], first: int, offsets: NDArray[np.int32]) -> tuple[int, int]:
    """First and last token of the answer in a window; the window's first token twice where it is not all there."""
    if not golds or not len(offsets):
        return 0, 0
    text, begin = golds[0]
    end = begin + len(text)
    if begin < offsets[0, 0] or end > offsets[-1, 1]:
        return 0, 0
    start = int(np.searchsorted(offsets[:, 1], begin, side="right"))  # the first token that ends behind its begin
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1  # the last that begins before its end
    return (first + start, first + last) if start <= last else (0, 0)
