"""The words and marks of a text, each worked out once: most of a text is a few thousand of them over and over.

BERT's normaliser, its splitting into words and WordPiece look at nothing beyond a space, a line end or an ASCII mark,
so the tokens of a text are those of its pieces, one behind the other. Tokenizers made of anything else (byte pairs,
say) are not taken apart.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")

_MARKS = re.escape(string.punctuation)
PIECE = re.compile(f"[^ \\n{_MARKS}]+|[{_MARKS}]")
HELD = 1 << 17
"""Pieces remembered, twice over: those met since the last change, and those met before. About 50 MB in all."""
LONGEST = 64
"""Characters; a longer piece is not remembered, so that memory stays bounded."""


class Pieces(Generic[Value]):
    """A function of pieces of text that remembers what it gave for those met lately.

    Args:
        compute: Gives the values of pieces, each a function of its piece alone.
    """

    def __init__(self, compute: Callable[[Sequence[str]], Sequence[Value]]) -> None:
        self._compute = compute
        self._recent: dict[str, Value] = {}
        self._before: dict[str, Value] = {}
        self._long: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Iterator[Iterator[Value]]:
        """For every text the values of its pieces in order; to be gone through before the next call."""
        split = [PIECE.findall(text) for text in texts]
        self._learn(set().union(*split))
        value = self._recent.__getitem__
        for pieces in split:
            yield map(value, pieces)

    def _learn(self, pieces: set[str]) -> None:
        for piece in self._long:
            del self._recent[piece]
        self._long = [piece for piece in pieces if len(piece) > LONGEST]
        if len(self._recent) > HELD:
            self._recent, self._before = {}, self._recent
        recent, before = self._recent, self._before
        missing = pieces.difference(recent)
        new = [piece for piece in missing if piece not in before]
        recent.update((piece, before[piece]) for piece in missing if piece in before)
        recent.update(zip(new, self._compute(new), strict=True))


def apart(tokenizer: str) -> bool:
    """Whether the tokens of a text are those of its pieces.

    Args:
        tokenizer: Content of a `tokenizer.json`. Special tokens in the text count as text.
    """
    about: dict[str, Any] = json.loads(tokenizer)
    kinds = {name: (about.get(name) or {}).get("type") for name in ("normalizer", "pre_tokenizer", "model")}
    words = kinds == {"normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer", "model": "WordPiece"}
    return words and all(token.get("special") for token in about.get("added_tokens") or ())
