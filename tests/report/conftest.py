"""One tiny run with its rivals, and a reader of pages."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earlybert.cli import main
from earlybert.config.prepare import Preparation
from earlybert.data import prepare, sources, vocabulary
from earlybert.ticket.history import FORMAT, HEADER_BYTES
from tests.corpus import documents

VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use", "image", "rect", "stop"}


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="session")
def settings(model_folder: Path, data_dir: Path) -> list[str]:
    return [
        *("--model", str(model_folder), "--task", "sst2", "--data-dir", str(data_dir), "--device", "cpu"),
        *("--max-length", "16", "--batch-size", "4", "--precision", "no", "--align", "8", "--heads", "1"),
        *("--dense-lr", "1e-3", "--lr", "2e-3", "--search-steps", "12", "--epochs", "1", "--dense-epochs", "2"),
    ]


@pytest.fixture(scope="session")
def compared(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with `compare.json`; do not write into it."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert run("finetune", *settings, "--compare", "--output", folder) == 0
    return folder


@pytest.fixture
def copied(compared: Path, tmp_path: Path) -> Path:
    """The same, to be broken."""
    return Path(shutil.copytree(compared, tmp_path / "copy"))


@pytest.fixture(scope="session")
def pretrain_settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("text")
    text, tokenizer, corpus = (folder / name for name in ("text.txt", "tokenizer", "corpus"))
    text.write_text("\n\n".join(documents(120)) + "\n", encoding="utf-8")
    vocabulary.train(lambda: text.read_text("utf-8").split("\n\n"), tokenizer, size=200, lowercase=True)
    about = Preparation(tokenizer=str(tokenizer), held_out=0.1, shard_tokens=4_000)
    prepare.prepare(sources.files([text], column="text", wrong_bytes="refuse"), corpus, about)
    parts = [
        {"corpus": corpus, "device": "cpu", "precision": "no"},
        {"layers": 3, "hidden": 32, "attention-heads": 4, "intermediate": 64, "positions": 64},
        {"steps": 20, "second": 0.25, "length": 24, "batch": 8, "rows": 4, "lr": 2e-2},
        {"second-length": 48, "second-batch": 4, "second-rows": 4, "second-lr": 1e-2, "second-warmup": 0.3},
        {"search-steps": 12, "heads": 1, "align": 8, "eval-every": 4, "eval-rows": 16, "profile-steps": 2},
    ]
    return [word for part in parts for name, value in part.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="session")
def pretrained(pretrain_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished pre-training runs, `ticket` and `dense`, all rows full; do not write into it."""
    folder = tmp_path_factory.mktemp("pretraining")
    for method in ("ticket", "dense"):
        assert (
            run("pretrain", *pretrain_settings, "--engine", "eager", "--method", method, "--output", folder / method)
            == 0
        )
    return folder


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def write_history(path: Path, rows: np.ndarray, heads: int, neurons: int) -> None:
    """`history.bin` as its format says, written here. `rows` is `[steps, layers * (heads + neurons)]`."""
    about = {"format": FORMAT, "layers": rows.shape[1] // (heads + neurons), "heads": heads, "neurons": neurons}
    path.write_bytes(json.dumps(about).encode().ljust(HEADER_BYTES - 1) + b"\n" + rows.astype("<f4").tobytes())


@dataclass
class Page:
    """What a browser would find on a page."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    numbers: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    """By run: key to value and text."""
    figures: dict[str, list[str]] = field(default_factory=dict)
    """By run, their names."""
    texts: list[str] = field(default_factory=list)
    """Of elements that are shown."""
    data: dict[str, Any] = field(default_factory=dict)
    """JSON in script elements, by id."""
    styles: str = ""

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self._run = ""
        self._open: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.page.tags.append((tag, found))
        if tag == "section":
            self._run = found["id"] or ""
            self.page.numbers[self._run], self.page.figures[self._run] = {}, []
        if tag == "figure":
            self.page.figures[self._run].append(found["data-figure"] or "")
        if tag not in VOID:
            self._open.append((tag, found))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tag, found = self._open[-1] if self._open else ("", {})
        if tag == "data":
            self.page.numbers[self._run][found["data-key"] or ""] = (found["value"] or "", data)
        if tag == "script" and found.get("type") == "application/json":
            self.page.data[found["id"] or ""] = json.loads(data)
        elif tag == "style":
            self.page.styles += data
        elif tag != "script":
            self.page.texts.append(data)


def read_page(path: Path) -> Page:
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.page
