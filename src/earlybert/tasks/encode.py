"""Text to token rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..anatomy import Refused
from .batches import Rows
from .examples import Examples

UNKNOWN = 0.5
"""A larger share of unknown tokens than this means the wrong tokenizer, not rare words."""
CHUNK = 4096
"""Rows tokenised at once: enough to keep the tokenizer's threads busy, few enough to hold in memory."""


def encode(examples: Examples, tokenizer: Any, max_length: int) -> tuple[Rows, int]:
    """Tokenise, cutting rows to `max_length` tokens.

    Returns:
        The rows, and how many of them were cut.

    Raises:
        Refused: The tokenizer has no padding token, or does not know the text.
    """
    refuse_unpadded(tokenizer)
    ids: list[list[int]] = []
    types: list[list[int]] = []
    cut = 0
    for begin in range(0, len(examples), CHUNK):
        part = slice(begin, begin + CHUNK)
        pairs = None if examples.pairs is None else list(examples.pairs[part])
        encoded = tokenizer(
            list(examples.texts[part]), pairs, truncation=True, max_length=max_length, return_overflowing_tokens=False
        )
        ids += encoded["input_ids"]
        types += encoded.get("token_type_ids", [])
        cut += _overlong(encoded, max_length)
    refuse_unknown(ids, tokenizer)
    return Rows(ids, types or None, {"labels": examples.labels}, tokenizer.pad_token_id, max_length), cut


def refuse_unpadded(tokenizer: Any) -> None:
    """The tokenizer must have a padding token.

    Raises:
        Refused: It has none.
    """
    if tokenizer.pad_token_id is None:
        raise Refused("the tokenizer has no padding token; set tokenizer.pad_token first.")


def refuse_unknown(ids: Sequence[Sequence[int]], tokenizer: Any) -> None:
    """Most of the text must be known to the tokenizer.

    Raises:
        Refused: It is not.
    """
    unknown = tokenizer.unk_token_id  # read once: the tokenizer looks it up anew each time
    special = set(tokenizer.all_special_ids) - {unknown}
    words = [token for row in ids for token in row if token not in special]
    strange = words.count(unknown)
    if strange > UNKNOWN * len(words):
        raise Refused(
            f"{strange / len(words):.0%} of the tokens are unknown to the tokenizer; is the text in its language, and "
            "does the model folder hold its tokenizer files?"
        )


def _overlong(encoded: Any, max_length: int) -> int:
    """Rows that lost tokens. A fast tokenizer remembers; with a slow one, full rows count."""
    if encoded.encodings is not None:
        return sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    return sum(len(ids) >= max_length for ids in encoded["input_ids"])
