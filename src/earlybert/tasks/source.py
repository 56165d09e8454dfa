"""The rows of one split: from a JSON-lines file, with the columns that a task needs."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..anatomy import Refused
from ..config.checks import shown


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, packed with gzip or not.

    Raises:
        Refused: It is missing or broken; the sentence says where.
    """
    rows: list[dict[str, Any]] = []
    number = 0
    torn = False
    try:
        with opened(path) as file:
            for line in file:
                number += 1
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError
                    if "\\u" in line and not _is_text(row):
                        torn = True
                        break
                    rows.append(row)
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error):
        raise Refused(f"data file {path} is broken after line {number} (damaged or not UTF-8 text).") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError):
        raise Refused(f"data file {path}, line {number}, is not a JSON object.") from None
    if torn:
        raise Refused(
            f"data file {path}, line {number}, holds half a character (a \\ud... escape without its other half); "
            "mend it, or leave the row out."
        )
    return rows


def opened(path: Path) -> TextIO:
    """A text file, packed as `.gz` or not, with its line ends as they are; a mark of byte order is left out."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def unreadable(path: Path, error: OSError) -> Refused:
    """What to say of a file that cannot be opened. A run names its files as they were named where it was begun."""
    sentence = f"data file {path} cannot be read ({error.strerror or error})"
    if path.is_absolute():
        return Refused(f"{sentence}.")
    return Refused(
        f"{sentence}; it is looked for from {Path.cwd()}, where this command runs, and a run names files from where "
        "it was begun."
    )


def listed(names: Iterable[Any]) -> str:
    """The first names in quotes, so that blanks show, each of them short."""
    some = [str(name) for name in names]
    return ", ".join([*map(shown, some[:10]), *(["..."] if len(some) > 10 else [])])


def _is_text(row: dict[str, Any]) -> bool:
    """Whether all of it can be written as UTF-8, which half a surrogate pair cannot."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def require(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], where: str) -> None:
    """Every row has these columns, and something in them.

    Raises:
        Refused: One has not; the sentence names the columns there are.
    """
    for number, row in enumerate(rows, start=1):
        for column in columns:
            if column not in row:
                raise Refused(f"{where}: row {number} has no column {column!r}; its columns are {listed(row)}.")
            if row[column] is None:
                raise Refused(f"{where}: row {number} has nothing in its column {column!r}.")
