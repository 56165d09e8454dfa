"""The tokenizer of a corpus: trained on it, or taken from a model."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..anatomy import Refused, first_line
from ..ticket.files import write_atomically

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
    counts: Counter[str] = Counter()
    for text in texts():
        counts.update(text)
    alphabet, inner = _alphabet(counts, tokenizer)
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
    tokenizer.train_from_iterator(iter(texts()), trainer)
    learned = tokenizer.get_vocab()
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


def load(name: str | os.PathLike[str]) -> Any:
    """The tokenizer of a model or a folder, fit for masked-language modelling.

    Raises:
        Refused: It cannot be loaded, is not a fast one, or lacks a mask or separator token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(os.fspath(name), trust_remote_code=False)
    except Exception as error:
        raise Refused(f"the tokenizer {os.fspath(name)} cannot be loaded ({first_line(error)}).") from None
    if not getattr(tokenizer, "is_fast", False):
        raise Refused(f"the tokenizer {os.fspath(name)} has no tokenizer.json; use a fast tokenizer.")
    missing = [
        part for part in ("mask_token", "cls_token", "sep_token", "pad_token") if getattr(tokenizer, part) is None
    ]
    if missing:
        raise Refused(f"the tokenizer {os.fspath(name)} has no {missing[0]}; masked-language modelling needs one.")
    return tokenizer


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of the vocabulary in order of ids: equal for tokenizers that read each other's shards."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    entries = sorted(vocabulary.items(), key=lambda entry: (entry[1], entry[0]))
    return hashlib.sha256(json.dumps(entries, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
