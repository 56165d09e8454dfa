"""The ticket: for each layer, the heads kept and the neurons kept. Plain data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..anatomy import Anatomy, Refused
from .files import write_atomically

FORMAT = 1
"""Version of the JSON layout."""

Layers = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Ticket:
    """Which heads and neurons stay (Sec. 3.2, ticket-drawing stage).

    Indices are those of the whole model, also in a ticket for a model that was cut before.

    Raises:
        Refused: A layer is empty, an index is out of range, repeated or out of order, or heads
            and neurons speak of different numbers of layers.
    """

    heads: Layers
    """For each layer, the sorted indices of the heads kept."""
    neurons: Layers
    """For each layer, the sorted indices of the intermediate neurons kept."""
    model_type: str
    """`config.model_type` of the models it fits."""
    num_heads: int
    """Heads per layer of the whole model."""
    num_neurons: int
    """Intermediate neurons per layer of the whole model."""
    drawn: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What drew it, from which scores, and how sure the cut is. JSON values only."""

    def __post_init__(self) -> None:
        if len(self.heads) != len(self.neurons) or not self.heads:
            raise Refused(
                f"a ticket needs heads and neurons for the same layers, got {len(self.heads)} and {len(self.neurons)}."
            )
        for what, layers, size in (("heads", self.heads, self.num_heads), ("neurons", self.neurons, self.num_neurons)):
            for number, kept in enumerate(layers):
                _validate(what, number, kept, size)

    @classmethod
    def of(cls, anatomy: Anatomy) -> Ticket:
        """All that a model has: what its own cut has kept, or every head and neuron of a whole one.

        Raises:
            Refused: As `Anatomy.refuse_unknown`.
        """
        anatomy.refuse_unknown()
        heads, neurons = (tuple(tuple(units) for units in part) for part in (anatomy.left.heads, anatomy.left.neurons))
        return cls(heads, neurons, anatomy.model_type, anatomy.num_heads, anatomy.num_neurons)

    @property
    def layers(self) -> int:
        """Transformer layers it speaks of."""
        return len(self.heads)

    @property
    def heads_kept(self) -> int:
        """Heads kept in all layers together."""
        return sum(map(len, self.heads))

    @property
    def neurons_kept(self) -> int:
        """Intermediate neurons kept in all layers together."""
        return sum(map(len, self.neurons))

    def fits(self, anatomy: Anatomy) -> None:
        """Check that this ticket is for that model: the whole one, or one of which nothing is gone that it keeps.

        Raises:
            Refused: Another type, other sizes, or a model that lacks something it keeps.
        """
        anatomy.refuse_unknown()
        for what, mine, its in (
            ("model type", self.model_type, anatomy.model_type),
            ("number of layers", self.layers, len(anatomy.layers)),
            ("heads per layer", self.num_heads, anatomy.num_heads),
            ("neurons per layer", self.num_neurons, anatomy.num_neurons),
        ):
            if mine != its:
                raise Refused(
                    f"this ticket is for another model: {what} is {mine} in the ticket and {its} in the model."
                )

        for what, kept, left in (
            ("head", self.heads, anatomy.left.heads),
            ("neuron", self.neurons, anatomy.left.neurons),
        ):
            for number, (wanted, present) in enumerate(zip(kept, left, strict=True)):
                if gone := sorted(set(wanted).difference(present)):
                    raise Refused(
                        f"this model has already been cut: {what} {gone[0]} of layer {number}, which this ticket "
                        "keeps, is gone; draw from scores of the cut model, or cut the full one."
                    )

    def to_dict(self) -> dict[str, Any]:
        """A JSON object that `from_dict` reads back, with a checksum of the rest."""
        body = {
            "format": FORMAT,
            "model_type": self.model_type,
            "num_heads": self.num_heads,
            "num_neurons": self.num_neurons,
            "heads": [list(kept) for kept in self.heads],
            "neurons": [list(kept) for kept in self.neurons],
            "drawn": dict(self.drawn),
        }
        return {**body, "sha256": _checksum(body)}

    @classmethod
    def from_dict(cls, data: Any, where: str = "the ticket") -> Ticket:
        """Read what `to_dict` wrote.

        Raises:
            Refused: Anything is missing, of a wrong type, out of range, or changed since.
        """
        if not isinstance(data, dict):
            raise Refused(f"{where} is not a ticket: a JSON object was expected.")
        body = {key: value for key, value in data.items() if key != "sha256"}
        expected = {"format", "model_type", "num_heads", "num_neurons", "heads", "neurons", "drawn"}
        if set(body) != expected:
            wrong = sorted(set(body) ^ expected)
            raise Refused(f"{where} is not a ticket: missing or unknown {', '.join(wrong)[:200]}.")
        if body["format"] != FORMAT:
            known = type(body["format"]) is int and abs(body["format"]) < 1_000_000
            found = body["format"] if known else "of another kind"
            raise Refused(f"{where} has format {found}; this version reads format {FORMAT}.")
        if not isinstance(body["model_type"], str) or not isinstance(body["drawn"], dict):
            raise Refused(f"{where} is broken: model_type must be text and drawn an object.")
        for key in ("num_heads", "num_neurons"):
            if type(body[key]) is not int or body[key] < 1:
                raise Refused(f"{where} is broken: {key} must be a whole number above 0.")
        kept = {key: _index_lists(body[key], f"{where}: {key}") for key in ("heads", "neurons")}
        try:
            ticket = cls(
                kept["heads"],
                kept["neurons"],
                body["model_type"],
                body["num_heads"],
                body["num_neurons"],
                body["drawn"],
            )
        except Refused as error:
            raise Refused(f"{where} is broken: {error}") from None
        if data.get("sha256") != _checksum(body):
            raise Refused(
                f"{where} was changed after it was written (checksum); draw it again, or build your own with "
                "earlybert.Ticket(...).save(path)."
            )
        return ticket

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON; whole or not at all. The same ticket gives the same bytes."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        write_atomically(path, text.encode() + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ticket:
        """Read a ticket file.

        Raises:
            Refused: The file is missing, broken, or was edited by hand.
        """
        where = f"ticket file {os.fspath(path)}"
        try:
            data = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise Refused(f"{where} cannot be read ({error.strerror}).") from None
        except (ValueError, RecursionError):
            raise Refused(f"{where} is not valid JSON; draw the ticket again.") from None
        return cls.from_dict(data, where)


def _validate(what: str, layer: int, kept: tuple[int, ...], size: int) -> None:
    if not kept:
        raise Refused(f"layer {layer} would keep no {what}; at least one has to stay.")
    if any(type(index) is not int for index in kept):
        raise Refused(f"layer {layer}: {what} must be whole numbers.")
    if kept[0] < 0 or kept[-1] >= size or any(a >= b for a, b in pairwise(kept)):
        raise Refused(f"layer {layer}: {what} must be different, in order and between 0 and {size - 1}.")


def _index_lists(value: Any, where: str) -> Layers:
    if not isinstance(value, list) or not all(isinstance(layer, list) for layer in value):
        raise Refused(f"{where} must be a list of lists, one a layer.")
    return tuple(tuple(layer) for layer in value)


def _checksum(body: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        raise Refused("a ticket holds a number that is not finite, or lists within lists without end.") from None
    return hashlib.sha256(text.encode()).hexdigest()
