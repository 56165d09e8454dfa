"""Token shards on disk: one safetensors file each, and a manifest over them.

A shard holds, for `train` and for `validation`, four arrays: `tokens`, the ids of all sentences without special tokens,
uint16 or uint32 `[tokens]`; `sentences`, the first token of each and the end, uint32 `[sentences + 1]`; `documents`,
the first sentence of each and the end, uint32 `[documents + 1]`; `hashes`, uint64 `[documents, 2]`. Documents never
cross shards, so that a reader needs no other file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..anatomy import Refused
from ..ticket.files import write_atomically
from ..ticket.tensors import UNUSABLE, Kind, mapped, typed

FORMAT = "earlybert-corpus-1"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
FILE = Kind("shard", FORMAT, "delete its folder and prepare the corpus again")


@dataclass(frozen=True)
class Shard:
    """One split of one shard, memory-mapped; see the module."""

    tokens: NDArray[Any]
    sentences: NDArray[np.uint32]
    documents: NDArray[np.uint32]
    hashes: NDArray[np.uint64]


PARTS = tuple(Shard.__dataclass_fields__)


class Builder:
    """Collects documents until they are written as one shard.

    Args:
        dtype: Of the ids.
    """

    def __init__(self, dtype: type[np.unsignedinteger[Any]]) -> None:
        self._dtype = dtype
        self._parts: dict[Split, tuple[list[NDArray[Any]], list[int], list[int], list[tuple[int, int]]]] = {
            split: ([], [], [], []) for split in SPLITS
        }
        self.tokens = 0
        """Ids held, of both splits."""

    def add(self, split: Split, tokens: NDArray[Any], lengths: NDArray[np.uint32], digest: tuple[int, int]) -> None:
        """One document: its ids `[tokens]`, and how many of them each sentence has `[sentences]`."""
        ids, sentences, documents, hashes = self._parts[split]
        ids.append(tokens)
        sentences += lengths.tolist()
        documents.append(len(lengths))
        hashes.append(digest)
        self.tokens += len(tokens)

    def write(self, path: Path) -> dict[str, Any]:
        """Write the file; what the manifest says of it.

        Raises:
            Refused: The disk is full or read-only.
        """
        from safetensors.numpy import save

        arrays: dict[str, NDArray[Any]] = {}
        entry: dict[str, Any] = {"file": path.name}
        for split, (ids, sentences, documents, hashes) in self._parts.items():
            arrays[f"{split}.tokens"] = np.concatenate([np.empty(0, self._dtype), *ids])
            arrays[f"{split}.sentences"] = _bounds(sentences)
            arrays[f"{split}.documents"] = _bounds(documents)
            arrays[f"{split}.hashes"] = np.array(hashes, dtype=np.uint64).reshape(-1, 2)
            entry[split] = {
                "documents": len(documents),
                "sentences": len(sentences),
                "tokens": len(arrays[f"{split}.tokens"]),
            }
        content = save(arrays)
        entry["bytes"] = len(content)
        entry["sha256"] = hashlib.sha256(content).hexdigest()
        write_atomically(path, content)
        return entry


def read(path: Path) -> dict[Split, Shard]:
    """Map a shard into memory; only what is touched is read.

    Raises:
        Refused: The file is missing or broken.
    """
    with FILE.reading(path):
        arrays = mapped(path)
        return {split: _shard({part: arrays[f"{split}.{part}"] for part in PARTS}) for split in SPLITS}


def _shard(arrays: dict[str, NDArray[Any]]) -> Shard:
    """One split, whose sentences lie within its tokens and whose documents lie within its sentences.

    Raises:
        ValueError: They do not.
    """
    shard = Shard(**arrays)
    for bounds, end in ((shard.sentences, len(shard.tokens)), (shard.documents, len(shard.sentences) - 1)):
        if bounds.ndim != 1 or bounds[0] != 0 or bounds[-1] != end or (bounds[1:] < bounds[:-1]).any():
            raise ValueError
    if shard.tokens.ndim != 1 or shard.hashes.shape != (len(shard.documents) - 1, 2):
        raise ValueError
    return shard


def _bounds(lengths: list[int]) -> NDArray[np.uint32]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.uint32)]).astype(np.uint32)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """The same content gives the same bytes."""
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a prepared corpus.

    Raises:
        Refused: There is none, it is broken, or it is of another version.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        known = manifest["format"] == FORMAT
        if known:
            typed(manifest, tokenizer=dict, counts=dict, settings=dict, shards=list)
            typed(manifest["tokenizer"], sha256=str)
            for split in SPLITS:
                typed(manifest["counts"], **{split: dict})
                typed(manifest["counts"][split], documents=int, sentences=int, tokens=int)
            check_entries(manifest["shards"])
    except FileNotFoundError:
        raise Refused(f"{folder} holds no prepared corpus; make one with `earlybert prepare`.") from None
    except UNUSABLE:
        raise Refused(f"manifest {path} is broken; {again(folder)}.") from None
    if not known:
        raise Refused(f"manifest {path} is of another version; {again(folder)}.")
    return manifest


def check_entries(entries: Any) -> None:
    """Hold what is said of shards against what `Builder.write` says: files of these names and no others are opened.

    Raises:
        ValueError, TypeError, KeyError: It is something else.
    """
    for number, entry in enumerate(entries):
        typed(entry, file=str, bytes=int, sha256=str)
        if entry["file"] != name_of(number):  # a name may not lead out of the folder
            raise ValueError


def name_of(number: int) -> str:
    """The file of a shard."""
    return f"{number:05d}.safetensors"


def check(folder: Path, entry: Mapping[str, Any], *, checksum: bool) -> None:
    """Hold a shard against its line in the manifest.

    Args:
        folder: Of the corpus.
        entry: The shard's line.
        checksum: Read the whole file and compare its SHA-256, not only its size.

    Raises:
        Refused: It is missing or differs.
    """
    path = folder / entry["file"]
    try:
        size = path.stat().st_size
        same = size == entry["bytes"]
        if same and checksum:
            with open(path, "rb") as file:
                same = _sha256(file) == entry["sha256"]
    except OSError as error:
        raise Refused(f"shard {path} cannot be read ({error.strerror or error}); {again(folder)}.") from None
    if not same:
        raise Refused(f"shard {path} is not what the manifest says (checksum); {again(folder)}.")


def again(folder: str | os.PathLike[str]) -> str:
    """What helps a corpus that is broken, the end of a sentence."""
    return f"delete {os.fspath(folder)} and prepare the corpus again"


def _sha256(file: Any) -> str:
    value = hashlib.sha256()
    while part := file.read(1 << 20):
        value.update(part)
    return value.hexdigest()
