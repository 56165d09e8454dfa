"""Planned examples to rows of token ids with their special tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .corpus import Words
from .noise import bits
from .plan import Plan
from .shards import Shard

AROUND_PAIR, AROUND_ROW = 3, 2
"""Special tokens of a pair, [CLS] A [SEP] B [SEP], and of a packed row, [CLS] ... [SEP]."""
DRAWS = 4
"""Numbers of 64 random bits that a pair needs: another document, a sentence of it, and coins for either half."""


@dataclass(frozen=True)
class Row:
    """One example, unmasked."""

    ids: NDArray[np.int64]
    """With special tokens `[tokens]`."""
    second: int
    """Tokens at the end that belong to the second segment."""
    random: bool
    """Whether the second segment is from another document."""


class Writer:
    """Makes rows from the shards of one split.

    Args:
        shards: All of them.
        words: Special tokens.
        length: Most tokens of a row, special ones included.
    """

    def __init__(self, shards: Sequence[Shard], words: Words, length: int) -> None:
        self._shards = shards
        self._length = length
        self._cls, self._sep = np.array([words.cls]), np.array([words.sep])
        counts = [len(shard.documents) - 1 for shard in shards]
        self._before = [0, *np.cumsum(counts).tolist()]

    @property
    def documents(self) -> int:
        """Documents of all shards."""
        return self._before[-1]

    def packed(self, shard: int, plan: Plan, example: int) -> Row:
        """Full sentences, and a [SEP] wherever a document ends."""
        part = self._shards[shard]
        begin, end = int(plan.begin[example]), int(plan.end[example])
        document = int(plan.document[example])
        pieces = [self._cls]
        while begin < end:
            border = min(end, int(part.sentences[part.documents[document + 1]]))
            pieces += [part.tokens[begin:border], self._sep]
            begin, document = border, document + 1
        return Row(np.concatenate(pieces).astype(np.int64), 0, False)

    def pair(self, shard: int, plan: Plan, example: int, draws: Sequence[int]) -> Row:
        """Two halves, cut to fit at random ends, the longer first, as BERT's script does.

        Args:
            shard: Its number.
            plan: Of the shard.
            example: Its number in the plan.
            draws: `DRAWS` numbers of 64 random bits.
        """
        part = self._shards[shard]
        begin, middle, end = int(plan.begin[example]), int(plan.middle[example]), int(plan.end[example])
        first, second = part.tokens[begin:middle], part.tokens[middle:end]
        random = bool(plan.random[example])
        if random:
            missing = int(plan.target[example]) - len(first)
            second = self._elsewhere(self._before[shard] + int(plan.document[example]), missing, draws[0], draws[1])
        for_first, for_second = excess(len(first), len(second), self._length - AROUND_PAIR)
        first, second = _cut(first, for_first, draws[2]), _cut(second, for_second, draws[3])
        ids = np.concatenate([self._cls, first, self._sep, second, self._sep]).astype(np.int64)
        return Row(ids, len(second) + 1, random)

    def _elsewhere(self, document: int, missing: int, which: int, at: int) -> NDArray[np.integer]:
        """Sentences from a random place of another document, at least one and about `missing` tokens."""
        other = which * (self.documents - 1) >> 64
        other += other >= document
        shard = bisect_right(self._before, other) - 1
        part, local = self._shards[shard], other - self._before[shard]
        low, high = int(part.documents[local]), int(part.documents[local + 1])
        begin = low + (at * (high - low) >> 64)
        starts = part.sentences[begin : high + 1].astype(np.int64)
        last = min(max(1, int(np.searchsorted(starts, starts[0] + missing))), high - begin)
        return part.tokens[starts[0] : starts[last]]


def excess(first: int, second: int, most: int) -> tuple[int, int]:
    """How many tokens each half loses when the longer loses one at a time, the second when both are equal."""
    over = max(0, first + second - most)
    level = min(over, abs(first - second))
    rest = over - level
    longer = (level, 0) if first > second else (0, level)
    return longer[0] + rest // 2, longer[1] + rest - rest // 2


def _cut(tokens: NDArray[np.integer], over: int, coins: int) -> NDArray[np.integer]:
    """Without `over` tokens, each taken from the front or from the end by a coin."""
    if not over:
        return tokens
    if over > 64:  # more coins than there are bits
        front = int((bits(coins, np.arange(over)) & np.uint64(1)).sum())
    else:
        front = (coins & ((1 << over) - 1)).bit_count()
    return tokens[front : len(tokens) - (over - front)]
