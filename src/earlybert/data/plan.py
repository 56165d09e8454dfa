"""Where the examples of a shard begin and end: BERT's sentence pairs, or rows packed with full sentences.

A plan is a function of the shard, the length and a seed alone. It reads sentence lengths, not tokens, and is computed
for all sentences at once: what example would begin at each, if one did; then the chain from the first is walked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .noise import Number, below, uniform
from .shards import Shard

SHORT = 0.1
"""Share of documents whose pairs are made shorter than the model allows (Devlin et al. 2018, App. A.2)."""
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Examples of one shard, in order; positions are tokens of the shard."""

    begin: Index
    """First token `[examples]`."""
    middle: Index
    """First token of the second sentence; the end where there is none."""
    end: Index
    """Behind the last token. For a random pair, what lies behind `middle` belongs to the next example."""
    random: NDArray[np.bool_]
    """Whether the second sentence is to come from another document."""
    document: Index
    """Document of the first token, within the shard."""
    target: Index
    """Tokens that the two sentences of a pair should have together, before they are cut."""

    def __len__(self) -> int:
        return len(self.begin)


def pairs(shard: Shard, length: int, *seed: Number) -> Plan:
    """Sentence pairs by the rules of BERT's `create_pretraining_data.py`.

    Sentences of a document are gathered until they have the target length, which is `length`, or less in one document
    of ten. A random point between them ends the first half. In half of the cases, and always when there is but one
    sentence, the second half is to be random, and the sentences behind the point begin the next example.

    Args:
        shard: Where from.
        length: Most tokens of both halves, special tokens not counted.
        *seed: Decides all draws.
    """
    starts, first, of, ends = _outline(shard)
    numbers = np.arange(len(of))
    draw = np.arange(len(first) - 1)
    short = uniform(*seed, 0, draw) < SHORT
    targets = np.where(short, 2 + below(length - 1, *seed, 1, draw), length)
    target = targets[of]
    last = np.minimum(np.searchsorted(starts, starts[:-1] + target), ends)
    count = last - numbers
    middle = numbers + np.where(count > 1, 1 + below(count - 1, *seed, 2, numbers), 1)
    random = (count == 1) | (uniform(*seed, 3, numbers) < 0.5)
    chosen = _walk(np.where(random, middle, last))
    parts = (starts[chosen], starts[middle[chosen]], starts[last[chosen]], random[chosen], of[chosen], target[chosen])
    return Plan(*parts)


def packed(shard: Shard, length: int, *, across: bool) -> Plan:
    """Rows of full sentences, as many as fit (Liu et al. 2019, FULL-SENTENCES and DOC-SENTENCES).

    Args:
        shard: Where from. A sentence longer than a row is cut into pieces.
        length: Most tokens of a row, [CLS] and the last [SEP] not counted.
        across: Go on into the next document, with a [SEP] between; else every document begins a row.
    """
    starts, first, of, _ = _outline(shard)
    pieces = -(-np.diff(starts) // length)
    owner = np.repeat(np.arange(len(of)), pieces)
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    units = np.append(starts[owner] + offset * length, starts[-1])
    of = of[owner]
    # A row from unit i to unit k has the tokens between them and a [SEP] for each document that ends on the way.
    following = np.searchsorted(units[1:] + of, units[:-1] + of + length, side="right")
    if not across:
        following = np.minimum(following, np.searchsorted(units, starts[first[of + 1]]))
    chosen = _walk(following)
    begin, end = units[chosen], units[following[chosen]]
    none = np.zeros(len(begin), dtype=np.int64)
    return Plan(begin, end, end, none.astype(bool), of[chosen], none + length)


def _outline(shard: Shard) -> tuple[Index, Index, Index, Index]:
    """First token of each sentence, first sentence of each document, document and last sentence of each sentence."""
    starts, first = shard.sentences.astype(np.int64), shard.documents.astype(np.int64)
    of = np.repeat(np.arange(len(first) - 1), np.diff(first))
    return starts, first, of, first[of + 1]


def _walk(following: NDArray[Any]) -> Index:
    """The chain that begins at 0 and ends behind the last."""
    steps = following.tolist()
    chain: list[int] = []
    place = 0
    while place < len(steps):
        chain.append(place)
        place = steps[place]
    return np.array(chain, dtype=np.int64)
