"""Which tokens are hidden, and by what (Devlin et al. 2018, Sec. 3.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .corpus import Words
from .noise import below, uniform

SHARE = 0.15
"""Of the tokens of a row, special ones counted, that are predicted."""
MASKED, KEPT = 0.8, 0.1
"""Of these, how many become the mask token, and how many stay; the rest become a random token."""


def most(length: int) -> int:
    """Tokens predicted in a row of `length` tokens: no row has more."""
    return max(1, round(SHARE * length))


def choose(
    ids: NDArray[np.int64],
    present: NDArray[np.bool_],
    sizes: NDArray[np.int64],
    words: Words,
    keys: NDArray[np.uint64],
    *,
    whole: bool,
) -> NDArray[np.bool_]:
    """Which tokens are predicted: words in random order, as long as they fit, as BERT's script takes them.

    Args:
        ids: Rows, padded, int64 `[rows, length]`.
        present: Which places hold a token that is not special.
        sizes: Tokens of each row, special ones counted, `[rows]`.
        words: Of the tokenizer.
        keys: Random bits `[rows, length]`: the order.
        whole: Take all tokens of a word or none.

    Returns:
        bool `[rows, length]`: `most` of each row's tokens; fewer where whole words do not add up to it.
    """
    wanted = np.maximum(1, np.rint(SHARE * sizes)).astype(np.int64)
    begins = present.copy()
    if whole:
        assert words.begins is not None
        # A row may begin, or go on behind a [SEP], in the middle of a word.
        begins[:, 1:] &= words.begins[ids[:, 1:]] | ~present[:, :-1]
    word = np.cumsum(begins, axis=1) - 1
    rows, columns = np.nonzero(present)
    length = np.zeros_like(ids)
    np.add.at(length, (rows, word[rows, columns]), 1)  # tokens of each word
    order = np.argsort(np.where(length > 0, keys, np.iinfo(np.uint64).max), axis=1, kind="stable")
    taken = np.zeros_like(present)
    total = np.zeros_like(wanted)
    every = np.arange(len(ids))
    for place in range(int((length > 0).sum(1).max(initial=0))):
        candidate = order[:, place]
        size = length[every, candidate]
        take = (size > 0) & (total + size <= wanted)
        taken[every, candidate] = take
        total += np.where(take, size, 0)
        if (total == wanted).all():
            break
    return taken[every[:, None], word.clip(0)] & present


def hide(
    ids: NDArray[np.int64], chosen: NDArray[np.bool_], words: Words, *where: Any
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Put masks in, 80 / 10 / 10.

    Args:
        ids: int64 `[rows, length]`.
        chosen: What is predicted, bool `[rows, length]`.
        words: Of the tokenizer.
        *where: Coordinates of the random draws, each broadcasting to `[rows, length]`.

    Returns:
        The ids with masks; the places predicted, counted through all rows, and their true ids `[predictions]`.
    """
    kind = uniform(*where, 0)
    other = words.replacements[below(len(words.replacements), *where, 1)]
    seen = np.where(kind < MASKED, words.mask, np.where(kind < MASKED + KEPT, ids, other))
    places = np.flatnonzero(chosen)
    return np.where(chosen, seen, ids), places, ids.reshape(-1)[places]
