"""What a YAML file or a flag may say of preparing a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .checks import between


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What decides the bytes of a prepared corpus, besides the text."""

    text: str = "text"
    """Column of the text in JSON lines and in data sets."""
    wrong_bytes: Literal["refuse", "skip", "replace"] = "refuse"
    """What to do about bytes that are not UTF-8: stop, leave the document out, or repair it with U+FFFD."""
    tokenizer: str | None = None
    """Model folder or hub name (or minilm) whose tokenizer is taken; a WordPiece vocabulary is trained without it."""
    vocabulary: int = 30_528
    """Tokens of a trained vocabulary; BERT's 30,522 rounded up to a multiple of 64, which matrix units want."""
    lowercase: bool = True
    """Train the vocabulary on lower-case text without accents."""
    sample: int = 200
    """Millions of characters, from the start of the text, that a vocabulary is trained on."""
    language: str = "en"
    """Language of the rules that split sentences, as an ISO 639 code."""
    held_out: float = 0.01
    """Share of the documents kept for validation, chosen by the hash of their text."""
    shard_tokens: int = 1 << 24
    """A shard ends soon after so many tokens."""

    def __post_init__(self) -> None:
        between("held_out", self.held_out, 0, 0.5)
        between("vocabulary", self.vocabulary, 64, 1 << 24)
        between("sample", self.sample, 1)
        between("shard_tokens", self.shard_tokens, 1, 1 << 31)
