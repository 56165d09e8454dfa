"""Documents to sentences to token ids: what a worker process does. It imports neither torch nor transformers."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pieces import Pieces, apart

MANY_IDS = 1 << 16
"""A vocabulary of at most so many ids is stored in two bytes each."""


@dataclass(frozen=True)
class Tokenised:
    """Documents behind one another."""

    tokens: NDArray[Any]
    """Ids without special tokens, uint16 or uint32 `[tokens]`."""
    sentences: NDArray[np.uint32]
    """Tokens of each sentence `[sentences]`, none of them 0."""
    documents: NDArray[np.uint32]
    """Sentences of each document `[documents]`; 0 where no token came out."""


class Tokeniser:
    """Splits and tokenises documents; the same text always gives the same ids.

    Args:
        tokenizer: Content of a `tokenizer.json`.
        language: Of the sentence rules, as an ISO 639 code.
    """

    def __init__(self, tokenizer: str, language: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A text that says "[MASK]" must not become a mask.
        self._tokenizer.encode_special_tokens = True
        self._language = language
        self.dtype = id_type(self._tokenizer.get_vocab_size())
        model: Any = self._tokenizer.model
        name = getattr(model, "unk_token", None)
        self.unknown: int | None = None if name is None else self._tokenizer.token_to_id(name)
        self._pieces = Pieces(self._encoded) if apart(tokenizer) else None

    def __call__(self, documents: Sequence[str]) -> Tokenised:
        """Tokenise whole documents, one paragraph a line."""
        texts: list[str] = []
        owners: list[int] = []
        for number, document in enumerate(documents):
            sentences = split(document, self._language)
            # The space tells byte-pair tokenizers that a new word begins; WordPiece does not see it.
            texts += [sentence if place == 0 else " " + sentence for place, sentence in enumerate(sentences)]
            owners += [number] * len(sentences)
        rows = [b"".join(ids) for ids in self._pieces(texts)] if self._pieces else self._encoded(texts)
        lengths = np.fromiter(map(len, rows), dtype=np.uint32, count=len(rows)) // np.dtype(self.dtype).itemsize
        flat = np.frombuffer(b"".join(rows), dtype=self.dtype)
        counts = np.bincount(np.array(owners, dtype=np.int64)[lengths > 0], minlength=len(documents))
        return Tokenised(flat, lengths[lengths > 0], counts.astype(np.uint32))

    def _encoded(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text, as the bytes of an array of `dtype`."""
        code = np.dtype(self.dtype).char
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [array(code, encoding.ids).tobytes() for encoding in found]


def split(document: str, language: str) -> list[str]:
    """Sentences of a document; none runs over the end of a line."""
    import sentencex

    segment: Any = sentencex.segment  # pyright: ignore[reportAttributeAccessIssue] # it is compiled, without stubs
    found = (sentence.strip() for line in document.split("\n") for sentence in segment(language, line))
    return [sentence for sentence in found if sentence]


def id_type(vocabulary: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest type that holds every id."""
    return np.uint16 if vocabulary <= MANY_IDS else np.uint32


_tokeniser: Tokeniser | None = None


def start(tokenizer: str, language: str) -> None:
    """Set up a worker process: each is one core."""
    global _tokeniser
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokeniser = Tokeniser(tokenizer, language)


def work(documents: Sequence[str]) -> Tokenised:
    """Tokenise in a worker process."""
    assert _tokeniser is not None
    return _tokeniser(documents)
