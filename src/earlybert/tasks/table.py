"""The rows of a person's own CSV, TSV or JSON-lines file, with the columns that are asked for."""

from __future__ import annotations

import csv
import gzip
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..anatomy import Refused
from ..config.checks import shown
from .source import listed, opened, read_jsonl, unreadable

Row = Mapping[str, Any]
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SEPARATORS = (";", "\t", ",")


def read(path: Path, columns: Sequence[str]) -> list[Row]:
    """Every row of a file.

    Args:
        path: `.csv`, `.tsv` or `.jsonl`, with `.gz` behind it or not, small or capital. CSV and TSV start with a
            header; TSV is read without quoting, as GLUE's is written.
        columns: Those that every row must have something in.

    Raises:
        Refused: The file or a column is missing, or a cell is empty.
    """
    kind = suffix(path)
    if kind in (".jsonl", ".json"):
        rows: list[Row] = list(read_jsonl(path))
    elif kind in DELIMITERS:
        rows = _read_table(path, DELIMITERS[kind])
    else:
        raise Refused(f"data file {path} must end in .csv, .tsv or .jsonl (and may be packed as .gz).")
    if not rows:
        raise Refused(f"data file {path} is empty.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    for column in columns:
        if column not in names:
            hint = _separator(names, DELIMITERS.get(kind))
            raise Refused(f"data file {path} has no column {column!r}; its columns are {listed(names)}{hint}.")
        for number, row in enumerate(rows, start=1):
            if _empty(row.get(column)):
                raise Refused(f"data file {path}, row {number}: column {column!r} is empty.")
    return rows


def suffix(path: Path) -> str:
    """The last suffix of a file but `.gz`, in small letters."""
    return next((end for end in map(str.lower, reversed(path.suffixes)) if end != ".gz"), "")


def _empty(cell: Any) -> bool:
    """Nothing, blanks, or NaN, by which JSON lines written from a table mark a missing cell."""
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _read_table(path: Path, delimiter: str) -> list[Row]:
    csv.field_size_limit(sys.maxsize)
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE  # as GLUE's TSV files are written
    try:
        with opened(path) as file:
            lines = [line for line in csv.reader(file, delimiter=delimiter, quoting=quoting) if line]
    except (EOFError, UnicodeDecodeError, gzip.BadGzipFile, zlib.error, csv.Error):
        raise Refused(f"data file {path} is damaged or not UTF-8 text.") from None
    except OSError as error:
        raise unreadable(path, error) from None
    names, cells = (lines[0], lines[1:]) if lines else ([], [])
    named = [place for place, name in enumerate(names) if name.strip()]
    if len({names[place] for place in named}) < len(named):
        raise Refused(f"data file {path} names a column twice in its header: {listed(names)}.")
    for number, line in enumerate(cells, start=1):
        _refuse_surplus(path, number, line, names, delimiter)
    return [{names[place]: line[place] if place < len(line) else None for place in named} for line in cells]


def _refuse_surplus(path: Path, number: int, line: Sequence[str], names: Sequence[str], delimiter: str) -> None:
    """A cell behind the header, or under a blank end of it, means a shifted row. Blanks in front head an index."""
    if len(line) > len(names):
        mend = (
            ".tsv files are read without quoting, so a text with a tab in it needs a .csv"
            if delimiter == "\t"
            else f"quote texts that hold {delimiter!r}"
        )
        hint = _separator(names, delimiter)
        raise Refused(f"data file {path}, row {number} has more cells than the header{hint or f'; {mend}'}.")
    first = next((place for place, name in enumerate(names) if name.strip()), len(names))
    for name, cell in list(zip(names, line, strict=False))[first:]:
        if cell.strip() and not name.strip():
            raise Refused(
                f"data file {path}, row {number}: a column without a name holds {shown(cell)}; name it in the header, "
                "or mend the row."
            )


def _separator(names: Sequence[str], delimiter: str | None) -> str:
    """A hint for a header that is one column, with what separates other tables in it."""
    other = next((other for other in SEPARATORS if len(names) == 1 and other != delimiter and other in names[0]), None)
    if delimiter is None or other is None:
        return ""
    kind = next(kind for kind, own in DELIMITERS.items() if own == delimiter)
    return f"; it looks separated by {other!r}, and a {kind} is by {delimiter!r}"
