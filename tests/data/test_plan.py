"""Where examples begin and end, against the loops of BERT's own script."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from earlybert.data import noise, plan
from earlybert.data.rows import _cut, excess
from earlybert.data.shards import Shard


def bound(count: int, share: float, sigmas: float = 4.5) -> float:
    """What a binomial count may be away from its mean: once in 150,000 trials it is more."""
    return sigmas * math.sqrt(count * share * (1 - share)) + 1


def shard_of(documents: list[list[int]]) -> Shard:
    """A shard with sentences of these lengths; its tokens are 0, 1, 2, ..."""
    lengths = [length for document in documents for length in document]
    bounds = [np.cumsum([0, *part]).astype(np.uint32) for part in (lengths, [len(d) for d in documents])]
    return Shard(np.arange(sum(lengths), dtype=np.uint32), *bounds, np.zeros((len(documents), 2), np.uint64))


def many(seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.choice([1, 3, 8, 20, 60]) for _ in range(draw.randint(1, 12))] for _ in range(300)]


def test_pairs_follow_the_script_of_bert() -> None:
    """The loop of `create_instances_from_document`, fed with the draws of the plan."""
    documents, length = many(0), 40
    made = plan.pairs(shard_of(documents), length, 5)
    at, offset, short = 0, 0, 0
    for document in documents:
        i, first = 0, offset
        target = int(made.target[at])
        short += target != length
        assert 2 <= target <= length
        while i < len(document):
            chunk, current = [], 0
            while i < len(document):
                chunk.append(document[i])
                current += document[i]
                if i == len(document) - 1 or current >= target:
                    break
                i += 1
            begin, middle, end = int(made.begin[at]), int(made.middle[at]), int(made.end[at])
            assert (begin, made.target[at]) == (first, target)
            assert end == first + sum(chunk)
            ends = [first + total for total in np.cumsum(chunk).tolist()]
            a_end = ends.index(middle) + 1  # a whole number of sentences, at least one
            if made.random[at]:
                i -= len(chunk) - a_end  # "so they don't go to waste"
                first = middle
            else:
                assert len(chunk) > 1  # one sentence alone always gets a random partner
                assert a_end < len(chunk)
                first = end
            i += 1
            at += 1
        offset += sum(document)
    assert at == len(made)
    assert abs(short - 0.1 * len(documents)) < bound(len(documents), 0.1)


def test_half_of_the_pairs_with_a_choice_are_random() -> None:
    made = plan.pairs(shard_of(many(1) * 5), 40, 7)
    lengths = np.concatenate([[0], np.cumsum([x for d in many(1) * 5 for x in d])])
    sentences = np.searchsorted(lengths, made.end) - np.searchsorted(lengths, made.begin)
    assert made.random[sentences == 1].all()
    free = made.random[sentences > 1]
    assert len(free) > 1_000
    assert abs(free.sum() - len(free) / 2) < bound(len(free), 0.5)
    middles = np.searchsorted(lengths, made.middle) - np.searchsorted(lengths, made.begin)
    thirds = Counter(middles[sentences == 4].tolist())
    assert set(thirds) == {1, 2, 3}
    assert all(abs(count - thirds.total() / 3) < bound(thirds.total(), 1 / 3) for count in thirds.values())


def test_the_cut_is_that_of_the_script() -> None:
    for first in range(1, 14):
        for second in range(1, 14):
            a, b = first, second
            while a + b > 9:
                a, b = (a - 1, b) if a > b else (a, b - 1)
            assert excess(first, second, 9) == (first - a, second - b)


@pytest.mark.parametrize("over", [1, 10, 64, 100])
def test_either_end_is_cut_by_a_fair_coin(over: int) -> None:
    """Tokens lost at the front are binomial: mean half of all, variance a quarter."""
    fronts = []
    for draw in range(2_000):
        kept = _cut(np.arange(200), over, int(noise.bits(4, draw)[0]))
        assert len(kept) == 200 - over
        assert (np.diff(kept) == 1).all()
        fronts.append(int(kept[0]))
    assert abs(sum(fronts) - 1_000 * over) < bound(2_000 * over, 0.5)
    assert np.var(fronts) == pytest.approx(over / 4, rel=0.15)


@pytest.mark.parametrize("across", [True, False])
def test_packed_rows_are_greedy(across: bool) -> None:
    """Sentence by sentence: a new row begins when the next does not fit, or at a document where it must."""
    documents, length = many(2), 40
    made = plan.packed(shard_of(documents), length, across=across)
    expected, begin, place, used = [], 0, 0, 0
    for number, document in enumerate(documents):
        if number and place > begin:
            if across:
                used += 1  # the [SEP] between
            else:
                expected.append((begin, place))
                begin, used = place, 0
        for sentence in document:
            for piece in [length] * (sentence // length) + [sentence % length] * bool(sentence % length):
                if used + piece > length:
                    expected.append((begin, place))
                    begin, used = place, 0
                used += piece
                place += piece
    expected.append((begin, place))
    assert list(zip(made.begin.tolist(), made.end.tolist(), strict=True)) == expected
