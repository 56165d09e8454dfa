"""A corpus that was refused before its first shard is begun anew, whatever was mended; nothing else is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import earlybert as eb
from earlybert.config.prepare import Preparation
from earlybert.data import prepare, sources, vocabulary
from earlybert.recipes.lock import locked
from tests.corpus import documents
from tests.recipes.conftest import run

Prepare = Callable[..., int]


@pytest.fixture
def prepared(tmp_path: Path, tokenizer_folder: Path) -> Prepare:
    """The command with a tokenizer that is there, so that text is read for its shards alone."""

    def command(*words: object) -> int:
        return run("prepare", *words, "--tokenizer", tokenizer_folder, "--workers", 1, "--output", tmp_path / "c")

    return command


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_text_that_was_mended_is_taken(
    tmp_path: Path, prepared: Prepare, resume: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text, latin = tmp_path / "t.txt", tmp_path / "latin.txt"
    text.write_text("\n\n".join(documents(30)), "utf-8")
    latin.write_bytes(b"Caf\xe9.\n\n" + text.read_bytes())
    (tmp_path / "empty.txt").touch()
    for files in ([text, tmp_path / "empty.txt"], [latin]):
        assert prepared(*files, *resume) == 2
        assert {path.name for path in (tmp_path / "c").iterdir()} == {"progress.json", "tokenizer"}
    assert "--wrong-bytes skip" in capsys.readouterr().err
    assert prepared(latin, "--wrong-bytes", "skip", *resume) == 0
    assert json.loads((tmp_path / "c" / "manifest.json").read_text())["counts"]["wrong_bytes"] == 1


def test_nothing_is_left_of_another_tokenizer(tmp_path: Path, text_file: Path, preparation: Preparation) -> None:
    """Files that only the first one has, as other versions of `transformers` write them; those of somebody else stay."""
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    folder, wrong = tmp_path / "c", sources.files([broken], column="text", wrong_bytes="refuse")
    with pytest.raises(eb.Refused, match="is not a JSON object"):
        prepare.prepare(wrong, folder, preparation)
    for name in ("special_tokens_map.json", "notes.md"):
        (folder / "tokenizer" / name).write_text('{"mask_token": "<mask>"}')
    found = sources.files([text_file], column="text", wrong_bytes="refuse")
    prepare.prepare(found, folder, replace(preparation, tokenizer=None, vocabulary=180))
    names = {path.name for path in (folder / "tokenizer").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "notes.md"}
    assert len(vocabulary.load(folder / "tokenizer")) == 180


def test_one_process_at_a_time_prepares_a_folder(
    tmp_path: Path, text_file: Path, prepared: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(tmp_path / "c"):
        assert prepared(text_file) == 2
    assert "another process is at work on" in capsys.readouterr().err
    assert prepared(text_file) == 0


def test_a_refusal_before_anything_is_written_leaves_no_folder(tmp_path: Path, text_file: Path) -> None:
    words = ["--tokenizer", "nobody/has-this-model", "--offline"]
    assert run("prepare", text_file, *words, "--output", tmp_path / "c") == 2
    assert not (tmp_path / "c").exists()


def test_text_without_blank_lines_is_pointed_out(
    tmp_path: Path, prepared: Prepare, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "LONGEST_DOCUMENT", 4_000)
    path = tmp_path / "t.txt"
    path.write_text("\n".join(line for text in documents(60) for line in text.split("\n")), "utf-8")
    assert prepared(path) == 0
    out = capsys.readouterr().out
    assert "note: 1 document was cut at" in out
    assert "is there a blank line between documents?" in out
