"""Documents out of files and data sets, and what is wrong with some."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import earlybert as eb
from earlybert import Refused
from earlybert.data import sources
from earlybert.data.sources import HubData, WrongBytes

TEXTS = ["One line.\nAnother line.", "A second document with ümlauts.", "A third."]


def read(path: Path, wrong_bytes: WrongBytes = "refuse", skip: int = 0) -> list[str | None]:
    (source,) = sources.files([path], column="text", wrong_bytes=wrong_bytes)
    return [found.text for found in source.documents(skip)]


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    plain = ("\ufeff" + "\r\n\r\n \n".join(TEXTS).replace("\nAn", "\r\nAn") + "\n\n").encode()
    lines = "".join(json.dumps({"text": f"  {text} \n"}) + "\n" for text in TEXTS).encode()
    for name, content in (
        ("a.txt", plain),
        ("b.txt.gz", gzip.compress(plain)),
        ("c.xz", lzma.compress(plain)),
        ("d.jsonl", lines),
        ("e.jsonl.gz", gzip.compress(lines)),
        ("f.json.xz", lzma.compress(lines)),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert read(path) == TEXTS, name
        assert read(path, skip=2) == TEXTS[2:], name


def test_a_data_set_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    data = HubData(str(tmp_path), config=None, split="train", column="text")
    assert [found.text for found in data.documents()] == TEXTS
    assert [found.text for found in data.documents(2)] == TEXTS[2:]
    with pytest.raises(eb.Refused, match="no text column 'body'; it has text"):
        HubData(str(tmp_path), config=None, split="train", column="body")
    with pytest.raises(eb.Refused, match="cannot be streamed"):
        HubData(str(tmp_path), config=None, split="tran", column="text")


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"Good.\n\nFine.\nCaf\xe9.\nMore.\n\nLast.\n")
    with pytest.raises(eb.Refused, match=r"line 4, is not UTF-8.*--wrong-bytes skip"):
        read(path)
    assert read(path, "skip") == ["Good.", None, "Last."]
    assert read(path, "replace") == ["Good.", "Fine.\nCaf\ufffd.\nMore.", "Last."]


def test_escapes_that_are_no_character(tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("Good \U0001f600.", "Torn \ud83d.", "Last."))
    )
    with pytest.raises(eb.Refused, match=r"line 2, holds half a character.*--wrong-bytes skip"):
        read(path)
    assert read(path, "skip") == ["Good \U0001f600.", None, "Last."]
    assert read(path, "replace") == ["Good \U0001f600.", "Torn \ufffd.", "Last."]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\n \n\n", "is empty"),
        ("a.txt", b"\x7fELF\x02\x00\x00", "zero bytes; it is not UTF-8 text"),
        ("a.txt.gz", gzip.compress(b"Hello.\n" * 9000)[:-20], "is damaged"),
        ("a.txt.gz", b"Hello.\n", "is damaged"),
        ("a.txt.xz", lzma.compress(b"Hello.\n" * 9000)[:-20], "is damaged"),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', "line 2, is not a JSON object"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', "no column 'text'; it has body, id"),
        ("a.jsonl", b'{"text": 3}\n', "is not text"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(eb.Refused, match=sentence):
        read(tmp_path / name)


def test_missing_and_equally_named_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(eb.Refused, match="is not there"):
        read(tmp_path / "none.txt")
    paths = [tmp_path / "a" / "t.txt", tmp_path / "b" / "t.txt"]
    for path in paths:
        path.parent.mkdir()
        path.write_text("Text.")
    with pytest.raises(eb.Refused, match=r"called t\.txt"):
        sources.files(paths, column="text", wrong_bytes="refuse")


def test_memory_is_bounded_by_lines_and_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.txt"
    path.write_text("\n".join(f"line {number:04d}" for number in range(10)))
    monkeypatch.setattr(sources, "LONGEST_DOCUMENT", 30)
    assert read(path) == ["\n".join(f"line {n:04d}" for n in range(a, min(10, a + 3))) for a in (0, 3, 6, 9)]
    path.write_text(path.read_text() + "\n\nshort\n\n" + path.read_text())
    (source,) = sources.files([path], column="text", wrong_bytes="refuse")
    assert [found.cut for found in source.documents()] == [True, *[False] * 4, True, *[False] * 3]
    monkeypatch.setattr(sources, "LONGEST_LINE", 8)
    with pytest.raises(eb.Refused, match="is it text with line ends"):
        read(path)


def test_a_data_set_that_breaks_or_holds_no_text_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Any] = [{"text": "One."}, {"text": None}, {"text": 5}]

    class Broken:
        def __iter__(self) -> Iterator[Any]:
            yield from rows[:2]
            raise OSError("the line is dead.")

        def skip(self, count: int) -> Iterator[Any]:
            return iter(rows[count:])

    data = HubData.__new__(HubData)
    data.name, data._column, data._rows = "a/b", "text", Broken()
    with pytest.raises(Refused, match=r"a/b broke after 2 rows \(the line is dead\); go on with --resume"):
        list(data.documents())
    with pytest.raises(Refused, match="row 3: column 'text' holds no text, but int"):
        list(data.documents(2))
