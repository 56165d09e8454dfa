"""A small corpus of made-up words, and its tokenizer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from earlybert.config.prepare import Preparation
from earlybert.data import prepare, sources
from earlybert.data.corpus import Corpus

SYLLABLES = ["ka", "lo", "mi", "ren", "tos", "va", "zu", "pel", "dri", "so"]


def documents(count: int, seed: int = 0) -> list[str]:
    """Documents of a few paragraphs of short and long sentences."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(300)]

    def sentence() -> str:
        text = " ".join(draw.choices(words, k=draw.randint(2, 14)))
        return text.capitalize() + draw.choice([".", ".", "?", "!"])

    return [
        "\n".join(" ".join(sentence() for _ in range(draw.randint(1, 6))) for _ in range(draw.randint(1, 5)))
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(documents(240)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    from earlybert.data import vocabulary

    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary.train(lambda: text_file.read_text("utf-8").split("\n\n"), folder, size=200, lowercase=True)
    return folder


@pytest.fixture(scope="session")
def preparation(tokenizer_folder: Path) -> Preparation:
    """Shards of about 20 documents."""
    return Preparation(tokenizer=str(tokenizer_folder), held_out=0.1, shard_tokens=4_000)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory, text_file: Path, preparation: Preparation) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "CHUNK", 2_000)
        prepare.prepare(sources.files([text_file], column="text", wrong_bytes="refuse"), folder, preparation)
    return folder


@pytest.fixture(scope="session")
def corpus(corpus_folder: Path) -> Corpus:
    return Corpus(corpus_folder)
