"""A prepared corpus, opened for reading."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..anatomy import Refused
from . import shards, vocabulary


@dataclass(frozen=True)
class Words:
    """What masking has to know of a tokenizer."""

    cls: int
    sep: int
    mask: int
    pad: int
    replacements: NDArray[np.int64]
    """Ids that may stand in for a masked token: all but the special ones."""
    begins: NDArray[np.bool_] | None
    """Whether a token begins a word `[vocabulary]`; None when the tokenizer does not tell."""


class Corpus:
    """Shards, memory-mapped, and their tokenizer.

    Args:
        folder: What `earlybert prepare` wrote.
        checksum: Read all shards and compare their SHA-256; else only sizes are compared. One process of a job is
            enough.

    Raises:
        Refused: It is incomplete, or a shard is missing or was changed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, checksum: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = shards.read_manifest(folder)
        for entry in self.manifest["shards"]:
            shards.check(self.folder, entry, checksum=checksum)
        self._shards = [shards.read(self.folder / entry["file"]) for entry in self.manifest["shards"]]
        self.tokenizer: Any = vocabulary.load(self.folder / shards.TOKENIZER)
        self.refuse_other(self.tokenizer)

    def shards(self, split: shards.Split) -> Sequence[shards.Shard]:
        """All shards of one split, in order; some may hold none of its documents."""
        return [parts[split] for parts in self._shards]

    def of_one_sentence(self, split: shards.Split = "train") -> float:
        """Share of the documents that hold a single sentence."""
        counts = [np.diff(shard.documents) for shard in self.shards(split)]
        return sum(int((count == 1).sum()) for count in counts) / max(1, sum(map(len, counts)))

    def refuse_other(self, tokenizer: Any) -> None:
        """Stop before ids are read with another vocabulary than they were written with.

        Raises:
            Refused: As said.
        """
        if vocabulary.fingerprint(tokenizer) != self.manifest["tokenizer"]["sha256"]:
            raise Refused(
                f"the shards in {self.folder} were made by another tokenizer; use the one in "
                f"{self.folder / shards.TOKENIZER}, or {shards.again(self.folder)}."
            )

    @cached_property
    def words(self) -> Words:
        """What masking has to know of the tokenizer."""
        return words_of(self.tokenizer)


def words_of(tokenizer: Any) -> Words:
    """What masking has to know of a tokenizer."""
    ids = np.arange(len(tokenizer))
    return Words(
        cls=tokenizer.cls_token_id,
        sep=tokenizer.sep_token_id,
        mask=tokenizer.mask_token_id,
        pad=tokenizer.pad_token_id,
        replacements=ids[~np.isin(ids, tokenizer.all_special_ids)],
        begins=_begins(tokenizer),
    )


def _begins(tokenizer: Any) -> NDArray[np.bool_] | None:
    """Which tokens begin a word, by the mark that the tokenizer's kind puts on them."""
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for mark, inside in (("##", True), ("\u0120", False), ("\u2581", False)):  # WordPiece, byte pairs, SentencePiece
        marked = np.array([name.startswith(mark) for name in names])
        if marked.sum() > 0.01 * len(names):
            return marked != inside
    return None
