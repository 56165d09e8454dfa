"""A ticket file is small, validated JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earlybert import Refused, Ticket


def ticket(**changes) -> Ticket:
    values = {
        "heads": ((0, 2), (1,)),
        "neurons": ((0, 1, 5), (2, 3)),
        "model_type": "bert",
        "num_heads": 4,
        "num_neurons": 8,
    }
    return Ticket(**{**values, **changes})


def test_round_trip(tmp_path: Path) -> None:
    written = ticket(drawn={"steps": 3, "margin": {"heads": 0.25}})
    written.save(tmp_path / "ticket.json")
    read = Ticket.load(tmp_path / "ticket.json")
    assert read == written
    assert read.drawn == written.drawn
    assert (read.layers, read.heads_kept, read.neurons_kept) == (2, 3, 5)
    assert [file.name for file in tmp_path.iterdir()] == ["ticket.json"]  # no temporary file stays


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": ((), (1,))},
        {"heads": ((0, 0), (1,))},
        {"heads": ((2, 0), (1,))},
        {"heads": ((0, 4), (1,))},
        {"heads": ((-1,), (1,))},
        {"heads": ((True,), (1,))},
        {"neurons": ((0,),)},
    ],
)
def test_impossible_tickets_cannot_be_built(changes: dict) -> None:
    with pytest.raises(Refused):
        ticket(**changes)


def test_hand_edited_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ticket.json"
    ticket().save(path)
    data = json.loads(path.read_text())
    data["heads"][0] = [0, 1]
    path.write_text(json.dumps(data))
    with pytest.raises(Refused, match="changed after it was written"):
        Ticket.load(path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", '{"format": 1}', '{"heads": 3}', "[" * 100_000, "\x00\xff"],
)
def test_broken_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ticket.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(Refused):
        Ticket.load(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        Ticket.load(tmp_path / "none.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(["format", "model_type", "num_heads", "num_neurons", "heads", "neurons", "drawn", "sha256"]),
    json_values,
)
def test_any_other_value_in_any_field_is_refused(field: str, value: object) -> None:
    data = ticket().to_dict()
    if value == data[field] and type(value) is type(data[field]):
        return
    data[field] = value
    with pytest.raises(Refused):
        Ticket.from_dict(data)
