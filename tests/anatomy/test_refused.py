"""The sentence of a refusal, whatever it quotes."""

from __future__ import annotations

from earlybert import Refused


def test_it_is_one_line_of_bounded_length() -> None:
    assert str(Refused("layer café: 1 of 2.")) == "layer café: 1 of 2."
    assert str(Refused("key 'a\nb\x1b[31m\udcff'")) == "key 'a b [31m '"
    assert len(str(Refused("9" * 100_000))) < 2_000
