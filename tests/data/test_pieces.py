"""Tokens and words by pieces against those of the whole text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as some

from earlybert.data import pieces, tokenise, vocabulary
from earlybert.data.pieces import Pieces, apart
from tests.corpus import documents

ODD = (
    "a\u0301 \u0301b ,\u0301 \u0301, e\u0301\u0327e\u0327\u0301 \x1cx\x1c \x85 \xa0 \u2028 \u200b \ufeff \ufffd \t\r \x00 \x7f "
    "\u4e2d\u6587 \uff0c\u3002 \u00df \u1e9e \u0130 \u03a3\u03a3 \ufb01 \u201cq\u201d don't [MASK] [CLS] ##x $1,000.00 -- ... "
)
"""Marks that combine, spaces of all kinds, control characters, characters that fold to several, special tokens."""
texts = some.text(
    some.one_of(some.sampled_from(ODD + "ab .,"), some.characters(exclude_categories=["Cs"])), max_size=60
)


@pytest.fixture(scope="session", params=[True, False], ids=["lower", "cased"])
def content(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pieces")
    vocabulary.train(lambda: [*documents(40), *[ODD] * 3], folder, size=400, lowercase=request.param)
    return (folder / "tokenizer.json").read_text("utf-8")


@effort(max_examples=300, deadline=None)
@given(found=some.lists(texts, max_size=3))
def test_tokens_are_those_of_the_whole_text(content: str, found: list[str]) -> None:
    whole, parts = tokenise.Tokeniser(content, "en"), tokenise.Tokeniser(content, "en")
    whole._pieces = None
    assert parts._pieces is not None
    for document in (*found, ODD):
        one, other = whole([document]), parts([document])
        for name in ("tokens", "sentences", "documents"):
            wanted = getattr(one, name)
            assert wanted.dtype == getattr(other, name).dtype
            assert wanted.tolist() == getattr(other, name).tolist()


@effort(max_examples=300, deadline=None)
@given(found=texts)
def test_words_are_those_of_the_whole_text(content: str, found: str) -> None:
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer: Any = Tokenizer.from_str(content)
    space: Any = pre_tokenizers.WhitespaceSplit()
    for text in (found, ODD):
        wanted = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        (given,) = vocabulary._words([text], tokenizer)
        assert [word for word, _ in space.pre_tokenize_str(given)] == [word for word, _ in wanted]


def test_characters_are_counted() -> None:
    """Line ends aside, which part the texts."""
    found = [ODD, "", *documents(3), "\ud800"]
    counts, wanted = vocabulary._characters(found), sum(map(Counter, found), Counter())
    assert {**counts, "\n": 0} == {**wanted, "\n": 0}


def test_a_piece_is_worked_out_once_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "HELD", 50)
    asked: list[str] = []

    def compute(new: Sequence[str]) -> list[str]:
        asked.extend(new)
        return [piece.upper() for piece in new]

    upper = Pieces(compute)
    long = "x" * (pieces.LONGEST + 1)
    for number in range(200):
        text = f"the word{number}, and {long}"
        (found,) = upper([text])
        assert list(found) == ["THE", f"WORD{number}", ",", "AND", long.upper()]
        assert len(upper._recent) + len(upper._before) <= 2 * (50 + 5)
    counts = Counter(asked)
    assert counts.pop(long) == 200
    assert set(counts.values()) == {1}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"normalizer": None}, False),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, False),
        ({"model": {"type": "BPE"}}, False),
        ({"added_tokens": [{"content": "New York", "special": False}]}, False),
    ],
)
def test_only_what_looks_at_words_is_taken_apart(content: str, change: dict[str, Any], expected: bool) -> None:
    assert apart(json.dumps({**json.loads(content), **change})) is expected
