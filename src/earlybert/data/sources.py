"""Where documents come from: text files, JSON lines, packed or not, or a data set of the hub."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from ..anatomy import Refused, first_line
from ..ticket.store import quiet
from .hub import hub, locally, why_missing

LONGEST_LINE = 16 << 20
"""Bytes; a longer line is not text, and would have to be held in memory."""
LONGEST_DOCUMENT = 4 << 20
"""Characters; a longer document is cut at the end of a line, so that memory stays bounded."""

HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: no character, and not to be written as UTF-8."""

WrongBytes = Literal["refuse", "skip", "replace"]
"""What to do about bytes that are not UTF-8: stop, leave the document out, or put U+FFFD in their place."""


@dataclass(frozen=True)
class Found:
    """A document as it was read."""

    text: str | None
    """Its paragraphs, one a line, stripped; None when it was left out for bytes that are not UTF-8."""
    consumed: int
    """Bytes of the source read so far, packed; for a bar."""
    wrong: bool = False
    """Whether it held bytes that are not UTF-8."""
    cut: bool = False
    """Whether it is the beginning of a longer one."""


class Source(Protocol):
    """Something that gives documents, in the same order every time."""

    name: str
    size: int
    """Bytes, packed; 0 when not known."""

    def documents(self, skip: int = 0) -> Iterator[Found]:
        """The documents after the first `skip`."""
        ...


def files(paths: Sequence[str | os.PathLike[str]], *, column: str, wrong_bytes: WrongBytes) -> list[Source]:
    """Text and JSON-lines files as sources.

    Args:
        paths: `.txt` (or any other name) holds one paragraph a line and a blank line between documents; `.jsonl`
            and `.json` one object a line. Either may be packed as `.gz` or `.xz`.
        column: Of the text in JSON lines.
        wrong_bytes: What to do about bytes that are not UTF-8.

    Raises:
        Refused: A file is missing, or two have the same name.
    """
    found: list[Source] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise Refused(f"text file {path} is not there.")
        found.append(TextFile(path, column, wrong_bytes))
    names = [source.name for source in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(f"two text files are called {repeated[0]}; give each a name of its own.")
    return found


class TextFile:
    """One file; see `files`."""

    def __init__(self, path: Path, column: str, wrong_bytes: WrongBytes) -> None:
        self.path = path
        self.name = path.name
        self.size = path.stat().st_size
        self._column = column
        self._wrong_bytes: WrongBytes = wrong_bytes
        inner = path.with_suffix("") if path.suffix in (".gz", ".xz") else path
        self._json = inner.suffix in (".jsonl", ".json")

    def documents(self, skip: int = 0) -> Iterator[Found]:
        """The documents after the first `skip`.

        Raises:
            Refused: The file is empty, broken, binary, or not UTF-8.
        """
        number = 0
        for found in self._from_json() if self._json else self._from_text():
            number += 1
            if number > skip:
                yield found
        if number == 0:
            raise Refused(f"text file {self.path} is empty.")

    def _from_text(self) -> Iterator[Found]:
        lines: list[str] = []
        size, wrong, consumed = 0, False, 0
        rest = False  # of a document whose beginning has been given
        for number, raw, behind in self._lines():
            line, wrong_here = self._decoded(raw, number)
            text = line.strip()
            if lines and (not text or size + len(text) > LONGEST_DOCUMENT):
                yield self._found("\n".join(lines), wrong, consumed, cut=bool(text) and not rest)
                lines, size, wrong, rest = [], 0, False, bool(text)
            if text:
                lines.append(text)
                size += len(text)
                wrong = wrong or wrong_here
            consumed = behind
        if lines:
            yield self._found("\n".join(lines), wrong, consumed)

    def _from_json(self) -> Iterator[Found]:
        for number, raw, consumed in self._lines():
            line, wrong = self._decoded(raw, number)
            if not line.strip():
                continue
            text, torn = self._mended(paragraphs(self._text_of(line, number)), number)
            yield self._found(text, wrong or torn, consumed)

    def _text_of(self, line: str, number: int) -> str:
        where = f"text file {self.path}, line {number}"
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise Refused(f"{where}, is not a JSON object.")
        if self._column not in row:
            raise Refused(f"{where}, has no column {self._column!r}; it has {', '.join(row)}.")
        if not isinstance(row[self._column], str):
            raise Refused(f"{where}: column {self._column!r} is not text.")
        return row[self._column]

    def _mended(self, text: str, number: int) -> tuple[str, bool]:
        """A text without halves of surrogate pairs, which JSON can write and UTF-8 cannot; whether it held any."""
        mended = HALF.sub("\ufffd", text)
        if mended != text and self._wrong_bytes == "refuse":
            raise Refused(
                f"text file {self.path}, line {number}, holds half a character (a \\ud... escape without its other "
                "half); let such documents be left out (--wrong-bytes skip) or repaired (--wrong-bytes replace)."
            )
        return mended, mended != text

    def _found(self, text: str, wrong: bool, consumed: int, *, cut: bool = False) -> Found:
        left_out = wrong and self._wrong_bytes == "skip"
        return Found(None if left_out else text, consumed, wrong, cut)

    def _decoded(self, raw: bytes, number: int) -> tuple[str, bool]:
        """A line as text, and whether it had to be repaired."""
        if b"\0" in raw:
            raise Refused(f"text file {self.path}, line {number}, holds zero bytes; it is not UTF-8 text.")
        encoding = "utf-8-sig" if number == 1 else "utf-8"
        try:
            return raw.decode(encoding), False
        except UnicodeDecodeError:
            if self._wrong_bytes == "refuse":
                raise Refused(
                    f"text file {self.path}, line {number}, is not UTF-8; convert the file, or let such documents be "
                    "left out (--wrong-bytes skip) or repaired (--wrong-bytes replace)."
                ) from None
            return raw.decode(encoding, "replace"), True

    def _lines(self) -> Iterator[tuple[int, bytes, int]]:
        """Number, bytes, and bytes of the packed file read so far, of every line."""
        number = 0
        try:
            with open(self.path, "rb") as packed, _unpacked(packed, self.path.suffix) as file:
                while raw := file.readline(LONGEST_LINE + 1):
                    number += 1
                    if len(raw) > LONGEST_LINE:
                        raise Refused(
                            f"text file {self.path}, line {number}, is longer than {LONGEST_LINE >> 20} MiB; "
                            "is it text with line ends?"
                        )
                    yield number, raw, packed.tell()
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error):
            raise Refused(f"text file {self.path} is damaged after line {number}.") from None
        except OSError as error:
            raise Refused(f"text file {self.path} cannot be read ({error.strerror or error}).") from None


def _unpacked(packed: IO[bytes], suffix: str) -> IO[bytes]:
    if suffix == ".gz":
        return gzip.open(packed, "rb")  # pyright: ignore[reportReturnType]
    if suffix == ".xz":
        return lzma.open(packed, "rb")  # pyright: ignore[reportReturnType]
    return packed


class HubData:
    """A data set of the hub, or a folder that `datasets` reads, streamed: it is never downloaded whole.

    Args:
        name: Of the data set, or a folder.
        config: Its configuration, where it has several.
        split: Which part.
        column: Of the text.
        offline: A name is looked for in the hub's cache only.

    Raises:
        Refused: It cannot be reached, or has no such split or column.
    """

    def __init__(self, name: str, *, config: str | None, split: str, column: str, offline: bool = False) -> None:
        self.name = "/".join(part for part in (name, config, split) if part)
        self.size = 0
        self._column = column
        try:
            from datasets import load_dataset

            with quiet(), hub(offline=offline or locally(name)):
                self._rows: Any = load_dataset(name, config, split=split, streaming=True)
                first = next(iter(self._rows), None)
        except Exception as error:
            why = (None if locally(name) else why_missing(offline=offline)) or first_line(error)
            raise Refused(f"data set {self.name} cannot be streamed ({why}).") from None
        if first is None:
            raise Refused(f"data set {self.name} is empty.")
        if not isinstance(first.get(column), str):
            raise Refused(f"data set {self.name} has no text column {column!r}; it has {', '.join(first)}.")

    def documents(self, skip: int = 0) -> Iterator[Found]:
        """The documents after the first `skip`.

        Raises:
            Refused: A row holds no text, or the stream breaks.
        """
        rows, number = iter(self._rows.skip(skip) if skip else self._rows), skip
        while True:
            try:
                row = next(rows, None)
            except Exception as error:  # of the network, of the hub, of its readers
                raise Refused(
                    f"data set {self.name} broke after {number:,} rows ({first_line(error)}); go on with --resume."
                ) from None
            if row is None:
                return
            number += 1
            text = row.get(self._column)
            if text is not None and not isinstance(text, str):
                raise Refused(
                    f"data set {self.name}, row {number:,}: column {self._column!r} holds no text, but "
                    f"{type(text).__name__}."
                )
            yield Found(paragraphs(text or ""), 0)


def paragraphs(text: str) -> str:
    """The lines of a text that hold something, stripped."""
    return "\n".join(line for line in map(str.strip, text.split("\n")) if line)
