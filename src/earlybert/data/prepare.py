"""Documents to shards: read and freed of duplicates in one process, tokenised in several, written in order.

The same input gives the same bytes whatever the number of workers: chunks of documents are cut by their size alone,
come back in order, and shards end where chunks end. Memory holds the chunks under way (two a worker, 1 MB of text
each), the words that workers remember (`pieces`, bounded), the shard being filled, and the digests of the documents
(`seen`); nothing else grows with the corpus.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import Refused
from ..config.prepare import Preparation
from ..ticket.files import disk_errors, remove_leftovers
from ..ticket.tensors import UNUSABLE, typed
from . import shards, tokenise, vocabulary
from .seen import Seen, digest
from .sources import Source

CHUNK = 1 << 20
"""Characters of text that a worker gets at once."""
REPEATED = 10_000
"""Repeated documents after which a chunk ends, however little text it has."""
PROGRESS = "progress.json"
OTHER = {"sources": "other text files", "sentencex": "another version of sentencex"}
"""What a corpus was begun with, where that is not a setting."""
UNKNOWN = 0.5
"""A larger share of unknown tokens in a chunk of the start means the wrong tokenizer."""


@dataclass(frozen=True)
class Tally:
    """How far the reading is, and what was left out on the way."""

    source: int = 0
    """Sources finished."""
    document: int = 0
    """Documents read of the next one."""
    consumed: int = 0
    """Bytes read of all sources, packed."""
    read: int = 0
    duplicates: int = 0
    wrong_bytes: int = 0
    """Documents with bytes that are not UTF-8, left out or repaired."""
    empty: int = 0
    """Documents without a token."""
    cut: int = 0
    """Documents that were too long, and became several."""


@dataclass(frozen=True)
class Chunk:
    """Documents for one worker, and the tally behind the last of them."""

    texts: list[str]
    digests: list[tuple[int, int]]
    repeated: list[tuple[int, int]]
    """Digests of documents that were left out as seen before."""
    after: Tally


@dataclass
class _Run:
    """What is remembered between two shards."""

    folder: Path
    settings: dict[str, Any]
    entries: list[dict[str, Any]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    def save(self) -> None:
        content = {"settings": self.settings, "tally": asdict(self.tally), "shards": self.entries}
        shards.write_json(self.folder / PROGRESS, content)


def prepare(
    sources: Sequence[Source],
    folder: Path,
    settings: Preparation,
    *,
    workers: int = 1,
    resume: bool = False,
    offline: bool = False,
    observe: Callable[[Tally], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Turn documents into token shards.

    Args:
        sources: Read in this order.
        folder: Gets the shards, `manifest.json` and `tokenizer/`.
        settings: What decides the bytes that come out, besides the documents.
        workers: Processes that tokenise; 1 does it in this process.
        resume: Go on with an unfinished folder, from the last whole shard.
        offline: The name of a tokenizer is looked for in the hub's cache only.
        observe: Called after every chunk.
        say: Told in a sentence what takes long.

    Returns:
        The manifest.

    Raises:
        Refused: The input cannot be used, the folder holds something else, or the disk is full.
    """
    run = _begin(sources, folder, settings, resume) or _fresh(sources, folder, settings, offline, say)
    content = (folder / shards.TOKENIZER / "tokenizer.json").read_text(encoding="utf-8")
    tokeniser = tokenise.Tokeniser(content, settings.language)
    seen = _seen_before(run)
    builder = shards.Builder(tokeniser.dtype)
    chunks = _chunks(sources, run.tally, seen)
    empty, again = run.tally.empty, 0
    blank: set[tuple[int, int]] = set()
    tally = run.tally
    for chunk, done in _tokenised(chunks, tokeniser, workers, content, settings.language):
        if not run.entries:
            _refuse_unknown(done, tokeniser.unknown)
        blanks = _add(builder, chunk, done, settings.held_out)
        blank.update(blanks)
        # No shard remembers these, so that a run that goes on meets them as new: a repeated one is empty once more.
        repeated = sum(entry in blank for entry in chunk.repeated)
        empty, again = empty + len(blanks) + repeated, again + repeated
        tally = replace(chunk.after, empty=empty, duplicates=chunk.after.duplicates - again)
        if builder.tokens >= settings.shard_tokens:
            _write(run, builder, tally)
            builder = shards.Builder(tokeniser.dtype)
        observe(tally)
    if builder.tokens or not run.entries:
        _write(run, builder, tally)
    run.tally = tally  # what came behind the last shard was left out, but counts
    return _finish(run, tokeniser)


def _begin(sources: Sequence[Source], folder: Path, settings: Preparation, resume: bool) -> _Run | None:
    """Where a stopped run was; None where none has written a shard, and there is nothing to lose."""
    remove_leftovers(folder)
    if (folder / shards.MANIFEST).exists():
        raise Refused(f"{folder} already holds a prepared corpus; give another folder, or delete it.")
    if not (folder / PROGRESS).exists():
        if folder.exists() and any(path.name != shards.TOKENIZER for path in folder.iterdir()):
            raise Refused(f"{folder} is not empty; give another folder.")
        return None
    run = _begun(folder)
    if not run.entries:
        return None
    if not resume:
        raise Refused(f"{folder} holds an unfinished corpus; go on with --resume, or delete it.")
    wanted = _said(sources, settings)
    if changed := [name for name in wanted if run.settings.get(name) != wanted[name]]:
        what = OTHER.get(changed[0], f"another --{changed[0].replace('_', '-')}")
        raise Refused(f"{folder} was begun with {what}; give the same again or another folder, or delete it.")
    for entry in run.entries:
        shards.check(folder, entry, checksum=True)
    return run


def _fresh(
    sources: Sequence[Source], folder: Path, settings: Preparation, offline: bool, say: Callable[[str], None]
) -> _Run:
    """A folder with a tokenizer in it, and no shard yet."""
    target = folder / shards.TOKENIZER
    if settings.tokenizer is None:
        say("training a vocabulary")
        _clear_tokenizer(folder)
        vocabulary.train(
            lambda: _sample(sources, settings), target, size=settings.vocabulary, lowercase=settings.lowercase
        )
    else:
        tokenizer = vocabulary.load(settings.tokenizer, offline=offline)
        _clear_tokenizer(folder)
        with disk_errors(target):
            tokenizer.save_pretrained(target)
    run = _Run(folder, _said(sources, settings))
    run.save()
    return run


def _said(sources: Sequence[Source], settings: Preparation) -> dict[str, Any]:
    """What decides the bytes that come out, as it is written down."""
    inputs = [{"name": source.name, "bytes": source.size} for source in sources]
    said = {**asdict(settings), "sources": inputs, "sentencex": version("sentencex")}
    if settings.tokenizer is not None and Path(settings.tokenizer).exists():
        said["tokenizer"] = Path(settings.tokenizer).name  # the result does not depend on where it lies
    return said


def _clear_tokenizer(folder: Path) -> None:
    """Remove the tokenizer of a run that wrote no shard: the next one may be made of other files."""
    if (folder / PROGRESS).exists():
        with disk_errors(folder):
            for name in vocabulary.FILES:
                (folder / shards.TOKENIZER / name).unlink(missing_ok=True)


def _begun(folder: Path) -> _Run:
    """What a stopped run had written down.

    Raises:
        Refused: It is broken.
    """
    path = folder / PROGRESS
    try:
        saved = json.loads(path.read_bytes())
        typed(saved, settings=dict, shards=list, tally=dict)
        shards.check_entries(saved["shards"])
        return _Run(folder, saved["settings"], saved["shards"], Tally(**saved["tally"]))
    except UNUSABLE:
        raise Refused(f"{path} is broken; {shards.again(folder)}.") from None


def _sample(sources: Sequence[Source], settings: Preparation) -> Iterator[str]:
    """The first part of the text, without what is held out."""
    left = settings.sample * 1_000_000
    for source in sources:
        for found in source.documents():
            if found.text and not _held_out(digest(found.text), settings.held_out):
                yield found.text
                left -= len(found.text)
                if left <= 0:
                    return


def _held_out(entry: tuple[int, int], share: float) -> bool:
    return entry[0] < share * 2.0**64


def _seen_before(run: _Run) -> Seen:
    seen = Seen()
    for entry in run.entries:
        for part in shards.read(run.folder / entry["file"]).values():
            for first, second in part.hashes.tolist():
                seen.add((first, second))
    return seen


def _chunks(sources: Sequence[Source], tally: Tally, seen: Seen) -> Iterator[Chunk]:
    """Documents not seen before, `CHUNK` characters at a time, from where the tally is."""
    texts: list[str] = []
    digests: list[tuple[int, int]] = []
    repeated: list[tuple[int, int]] = []
    size = 0
    before = sum(source.size for source in sources[: tally.source])
    for number, source in enumerate(sources[tally.source :], start=tally.source):
        for found in source.documents(tally.document):
            tally = replace(
                tally,
                document=tally.document + 1,
                consumed=before + found.consumed,
                read=tally.read + 1,
                wrong_bytes=tally.wrong_bytes + found.wrong,
                cut=tally.cut + found.cut,
            )
            if found.text is None:
                continue
            entry = digest(found.text)
            if not seen.add(entry):
                tally = replace(tally, duplicates=tally.duplicates + 1)
                repeated.append(entry)
            else:
                texts.append(found.text)
                digests.append(entry)
                size += len(found.text)
            if size >= CHUNK or len(repeated) >= REPEATED:
                yield Chunk(texts, digests, repeated, tally)
                texts, digests, repeated, size = [], [], [], 0
        before += source.size
        tally = replace(tally, source=number + 1, document=0, consumed=before)
    yield Chunk(texts, digests, repeated, tally)


def _tokenised(
    chunks: Iterator[Chunk], tokeniser: tokenise.Tokeniser, workers: int, content: str, language: str
) -> Iterator[tuple[Chunk, tokenise.Tokenised]]:
    """Every chunk with its ids, in order."""
    if workers <= 1:
        for chunk in chunks:
            yield chunk, tokeniser(chunk.texts)
        return
    with _pool(workers, content, language) as pool:
        waiting: deque[tuple[Chunk, Future[tokenise.Tokenised]]] = deque()
        for chunk in chunks:
            waiting.append((chunk, pool.submit(tokenise.work, chunk.texts)))
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


@contextmanager
def _pool(workers: int, content: str, language: str) -> Iterator[ProcessPoolExecutor]:
    # Not forked: a fork of a process with threads may hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), tokenise.start, (content, language))
    try:
        yield pool
    except BrokenProcessPool:
        raise Refused(
            "a worker process was killed (out of memory?); go on with --resume, and fewer --workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _add(builder: shards.Builder, chunk: Chunk, done: tokenise.Tokenised, held_out: float) -> list[tuple[int, int]]:
    """Put the documents of a chunk into a shard; digests of those that had no token."""
    last = np.concatenate([[0], np.cumsum(done.documents, dtype=np.int64)])
    ends = np.concatenate([[0], np.cumsum(done.sentences, dtype=np.int64)])
    empty: list[tuple[int, int]] = []
    for entry, (begin, end) in zip(chunk.digests, pairwise(last.tolist()), strict=True):
        if begin == end:
            empty.append(entry)
            continue
        split: shards.Split = "validation" if _held_out(entry, held_out) else "train"
        builder.add(split, done.tokens[ends[begin] : ends[end]], done.sentences[begin:end], entry)
    return empty


def _refuse_unknown(done: tokenise.Tokenised, unknown: int | None) -> None:
    share = np.count_nonzero(done.tokens == unknown) / max(1, len(done.tokens))
    if unknown is not None and share > UNKNOWN:
        raise Refused(
            f"{share:.0%} of the tokens are unknown to the tokenizer; is the text in its language, and does the model "
            "folder hold its tokenizer files?"
        )


def _write(run: _Run, builder: shards.Builder, tally: Tally) -> None:
    path = run.folder / shards.name_of(len(run.entries))
    run.entries.append(builder.write(path))
    run.tally = tally
    run.save()


def _finish(run: _Run, tokeniser: tokenise.Tokeniser) -> dict[str, Any]:
    counts: dict[str, Any] = {
        split: {part: sum(entry[split][part] for entry in run.entries) for part in ("documents", "sentences", "tokens")}
        for split in shards.SPLITS
    }
    if not counts["train"]["tokens"]:
        raise Refused("the text files hold no document to train on.")
    left_out = {name: getattr(run.tally, name) for name in ("read", "duplicates", "wrong_bytes", "empty", "cut")}
    tokenizer = vocabulary.load(run.folder / shards.TOKENIZER)
    manifest = {
        "format": shards.FORMAT,
        "tokenizer": {"sha256": vocabulary.fingerprint(tokenizer), "tokens": len(tokenizer)},
        "dtype": np.dtype(tokeniser.dtype).name,
        "settings": run.settings,
        "counts": {**counts, **left_out},
        "shards": run.entries,
    }
    shards.write_json(run.folder / shards.MANIFEST, manifest)
    (run.folder / PROGRESS).unlink()
    return manifest
