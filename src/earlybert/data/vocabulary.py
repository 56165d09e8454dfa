"""The tokenizer of a corpus: trained on it, or taken from a model."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import Refused, first_line
from ..ticket.files import write_atomically
from ..ticket.store import quiet
from .hub import hub, locally, why_missing
from .pieces import Pieces

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
"""In the order of BERT's vocabulary."""
ALPHABET = 1000
"""Characters that get a token of their own, the most frequent; words with others are unknown."""
MODEL_MAX_LENGTH = 512
FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
)
"""Names that `transformers` gives to what a tokenizer is made of."""


def train(texts: Callable[[], Iterable[str]], folder: str | os.PathLike[str], *, size: int, lowercase: bool) -> None:
    """Train a WordPiece vocabulary and write a tokenizer that `AutoTokenizer` loads.

    The trainer of `tokenizers` numbers "##" characters in the order of a hash table that differs from run to run, and
    breaks ties by these numbers; so the alphabet is counted here and handed to it in a fixed order.

    Args:
        texts: Gives the documents anew each time it is called; they are read twice.
        folder: Where `tokenizer.json`, `vocab.txt` and `tokenizer_config.json` go.
        size: Most tokens, special ones included; there are fewer where the text has fewer different words.
        lowercase: Fold case and strip accents, as BERT's uncased models do.

    Raises:
        Refused: The size leaves no room for anything but single characters.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    alphabet, inner = _alphabet(_characters(texts()), tokenizer)
    fixed = [*SPECIAL.values(), *inner]
    if size < len(fixed) + len(alphabet):
        raise Refused(f"a vocabulary of {size} is too small: {len(fixed) + len(alphabet)} go to single characters.")
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=fixed,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    counting = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    counting.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    counting.train_from_iterator(_words(texts(), tokenizer), trainer)
    learned = counting.get_vocab()
    # A fresh model: in the trained one every "##" character is a special token.
    rest = sorted((word for word in learned if word not in set(SPECIAL.values())), key=learned.__getitem__)
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *rest])}
    final = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"]))  # pyright: ignore[reportCallIssue]
    final.add_special_tokens(list(SPECIAL.values()))
    final.normalizer, final.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    final.decoder = decoders.WordPiece()  # pyright: ignore[reportAttributeAccessIssue]
    final.post_processor = processors.BertProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        *((name, vocabulary[name]) for name in ("[SEP]", "[CLS]"))
    )
    about = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": lowercase,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": MODEL_MAX_LENGTH,
        **SPECIAL,
    }
    target = Path(folder)
    write_atomically(target / "tokenizer_config.json", json.dumps(about, indent=2).encode() + b"\n")
    write_atomically(target / "vocab.txt", "".join(f"{word}\n" for word in vocabulary).encode())
    write_atomically(target / "tokenizer.json", final.to_str(pretty=True).encode())


def _characters(texts: Iterable[str]) -> Counter[str]:
    """How often each character comes."""
    counts = np.zeros(sys.maxunicode + 1, dtype=np.int64)
    for part in _joined(texts):
        codes = np.frombuffer(part.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        counts += np.bincount(codes, minlength=len(counts))
    return Counter({chr(code): int(counts[code]) for code in np.flatnonzero(counts).tolist()})


def _words(texts: Iterable[str], tokenizer: Any) -> Iterator[str]:
    """The texts as the tokenizer's words with a space between, so that the trainer has little left to do."""

    def words(piece: str) -> str:
        normal = tokenizer.normalizer.normalize_str(piece)
        if piece.isascii() and piece.isalnum():  # one word
            return normal
        return " ".join(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))

    pieces = Pieces(lambda new: list(map(words, new)))
    for part in _joined(texts):
        for found in pieces([part]):
            yield " ".join(found)


def _joined(texts: Iterable[str], size: int = 1 << 18) -> Iterator[str]:
    """Many short texts as fewer long ones, a line end between."""
    held: list[str] = []
    length = 0
    for text in texts:
        held.append(text)
        length += len(text)
        if length >= size:
            yield "\n".join(held)
            held, length = [], 0
    yield "\n".join(held)


def _alphabet(counts: Counter[str], tokenizer: Any) -> tuple[list[str], list[str]]:
    """The most frequent characters, in order, and those of them that stand inside words, as "##" tokens."""
    normal: Counter[str] = Counter()
    for character, count in counts.items():
        for part in tokenizer.normalizer.normalize_str(character):
            if not part.isspace():
                normal[part] += count
    kept = sorted(sorted(normal, key=lambda part: (-normal[part], part))[:ALPHABET])
    inside = [part for part in kept if len(tokenizer.pre_tokenizer.pre_tokenize_str(f"a{part}a")) == 1]
    return kept, [f"##{part}" for part in inside]


def load(name: str | os.PathLike[str], *, offline: bool = False) -> Any:
    """The tokenizer of a model or a folder, fit for masked-language modelling.

    Args:
        name: A folder, or a name on the hub.
        offline: A name is looked for in the hub's cache only.

    Raises:
        Refused: It cannot be loaded, is not a fast one, or lacks a mask or separator token.
    """
    from transformers import AutoTokenizer

    where = os.fspath(name)
    try:
        with quiet(), hub(offline=offline or locally(where)):
            tokenizer: Any = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except Exception as error:
        why = (None if Path(where).exists() else why_missing(offline=offline)) or first_line(error)
        raise Refused(f"the tokenizer {where} cannot be loaded ({why}).") from None
    if not getattr(tokenizer, "is_fast", False):
        raise Refused(f"the tokenizer {where} has no tokenizer.json; use a fast tokenizer.")
    lacking = [
        part for part in ("mask_token", "cls_token", "sep_token", "pad_token") if getattr(tokenizer, part) is None
    ]
    if lacking:
        raise Refused(f"the tokenizer {where} has no {lacking[0]}; masked-language modelling needs one.")
    return tokenizer


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of the vocabulary in order of ids: equal for tokenizers that read each other's shards."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    entries = sorted(vocabulary.items(), key=lambda entry: (entry[1], entry[0]))
    return hashlib.sha256(json.dumps(entries, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
