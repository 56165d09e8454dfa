"""Look at a ticket, and at how two differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..anatomy import Refused
from ..report.sheet import Sheet
from ..ticket import Ticket
from ..ticket.distance import jaccard, jaccard_by_chance
from ..ticket.store import read_config
from ..ticket.ticket import Layers
from .display import display

KEPT, GONE = "■", "·"
"""A head in a map."""


def look(words: Sequence[str], *, as_json: bool = False) -> None:
    """Print what `show PATH` or `diff A B` asks for.

    Args:
        words: `show` and a path, or `diff` and two.
        as_json: One JSON object instead of tables.

    Raises:
        Refused: The words are others, or a path holds no ticket.
    """
    match list(words):
        case ["show", path]:
            ticket = find(Path(path))
            found: Any = description(ticket)
            tables = [shown(ticket, path)]
        case ["diff", first, second]:
            a, b = find(Path(first)), find(Path(second))
            found = difference(a, b)
            tables = [differing(found, first, second)]
        case _:
            raise Refused("say earlybert ticket show PATH, or earlybert ticket diff A B.")
    if as_json:
        print(json.dumps(found))
        return
    for table in tables:
        display.table(table)


def find(path: Path) -> Ticket:
    """The ticket in a ticket file, a run folder or the folder of a saved model.

    Raises:
        Refused: There is none.
    """
    if not path.is_dir():
        return Ticket.load(path)
    if (path / "ticket.json").is_file():
        return Ticket.load(path / "ticket.json")
    if not (path / "config.json").is_file():
        raise Refused(f"{path} holds no ticket: it has neither a ticket.json nor the config.json of a model.")
    entry = read_config(path).get("earlybert")
    if entry is None:
        raise Refused(f"the model in {path} is whole: there is no ticket in its config.json.")
    return Ticket.from_dict(entry.get("ticket") if isinstance(entry, dict) else None, f"the ticket in {path}")


def description(ticket: Ticket) -> dict[str, Any]:
    """The ticket as JSON values, its counts beside it."""
    return {
        **ticket.to_dict(),
        "layers": ticket.layers,
        "heads_kept": [len(kept) for kept in ticket.heads],
        "neurons_kept": [len(kept) for kept in ticket.neurons],
    }


def shown(ticket: Ticket, name: str) -> Sheet:
    """Heads as a map, layers by heads, and neurons as counts."""
    marks = [str((head + 1) % 10) for head in range(ticket.num_heads)]
    rows = [
        [
            str(layer),
            " ".join(KEPT if head in heads else GONE for head in range(ticket.num_heads)),
            f"{len(heads)} of {ticket.num_heads}",
            f"{len(neurons):,} of {ticket.num_neurons:,}",
            f"{len(neurons) / ticket.num_neurons:.0%}",
        ]
        for layer, (heads, neurons) in enumerate(zip(ticket.heads, ticket.neurons, strict=True), 1)
    ]
    whole_heads, whole_neurons = ticket.layers * ticket.num_heads, ticket.layers * ticket.num_neurons
    total = ["all", "", f"{ticket.heads_kept} of {whole_heads}", f"{ticket.neurons_kept:,} of {whole_neurons:,}"]
    rows.append([*total, f"{ticket.neurons_kept / whole_neurons:.0%}"])
    columns = ("layer", " ".join(marks), "heads kept", "neurons kept", "")
    return Sheet(f"{name}, a ticket for {ticket.model_type}", columns, rows, _origin(ticket))


def _origin(ticket: Ticket) -> list[str]:
    """What drew it, and how sure the cut is, as far as it is stored."""
    drawn = dict(ticket.drawn)
    notes: list[str] = []
    if "heads" in drawn and "neurons" in drawn:
        parts = [_budget(drawn[kind], kind, drawn.get(f"{kind}_scope")) for kind in ("heads", "neurons")]
        notes.append(f"Budget: remove {' and '.join(parts)}; neurons in multiples of {drawn.get('align', 1)}.")
    elif "joint" in drawn:
        notes.append(f"Budget: remove {100 * drawn['joint']:.3g} % of the FLOPs, heads and neurons in one ranking.")
    if "source" in drawn:
        notes.append(f"Drawn by {drawn['source']} after {drawn.get('steps', 0)} steps, seed {drawn.get('seed', 0)}.")
    margin = drawn.get("margin")
    if isinstance(margin, dict):
        known = [f"{kind} {float(margin[kind]):.3g}" for kind in ("heads", "neurons") if margin.get(kind) is not None]
        if known:
            notes.append(
                f"Margin between the worst score kept and the best removed: {', '.join(known)}. "
                "0 is a tie; below 0 alignment went before the scores."
            )
    return notes


def _budget(remove: Any, kind: str, scope: Any) -> str:
    """What goes, in words."""
    if isinstance(remove, float):
        return f"{100 * remove:.3g} % of {f'the {kind} of each layer' if scope == 'layer' else f'all {kind}'}"
    return f"{remove} {kind} {'of each layer' if scope == 'layer' else 'in all'}"


def difference(a: Ticket, b: Ticket) -> dict[str, Any]:
    """How two tickets for one model differ, layer by layer, as JSON values.

    Raises:
        Refused: They are for different models.
    """
    for what, mine, its in (
        ("the model type", a.model_type, b.model_type),
        ("the number of layers", a.layers, b.layers),
        ("the heads of a layer", a.num_heads, b.num_heads),
        ("the neurons of a layer", a.num_neurons, b.num_neurons),
    ):
        if mine != its:
            raise Refused(f"these tickets are for different models: {what} is {mine} in one and {its} in the other.")
    return {
        "same": a == b,
        "heads": [_layer(*pair, a.num_heads) for pair in zip(a.heads, b.heads, strict=True)],
        "neurons": [_layer(*pair, a.num_neurons) for pair in zip(a.neurons, b.neurons, strict=True)],
        "all": {"heads": _all(a.heads, b.heads, a.num_heads), "neurons": _all(a.neurons, b.neurons, a.num_neurons)},
    }


def _layer(a: Sequence[int], b: Sequence[int], units: int) -> dict[str, Any]:
    return {
        "jaccard": jaccard(a, b),
        "by_chance": jaccard_by_chance(len(a), len(b), units),
        "only_first": sorted(set(a) - set(b)),
        "only_second": sorted(set(b) - set(a)),
    }


def _all(a: Layers, b: Layers, units: int) -> dict[str, float]:
    """Over all layers together; by chance at the same widths in every layer, as a ratio of means."""
    both = sum(len(set(x) & set(y)) for x, y in zip(a, b, strict=True))
    chance = sum(len(x) * len(y) / units for x, y in zip(a, b, strict=True))
    sizes = sum(map(len, a)) + sum(map(len, b))
    return {"jaccard": both / (sizes - both), "by_chance": chance / (sizes - chance)}


def differing(found: dict[str, Any], first: str, second: str) -> Sheet:
    """A row a layer; A is the first ticket."""
    rows: list[list[str]] = []
    for layer, (heads, neurons) in enumerate(zip(found["heads"], found["neurons"], strict=True), 1):
        named = [" ".join(str(head + 1) for head in heads[side]) or "-" for side in ("only_first", "only_second")]
        counts = [f"{len(neurons[side]):,}" for side in ("only_first", "only_second")]
        rows.append([str(layer), _overlap(heads), *named, _overlap(neurons), *counts])
    heads, neurons = found["all"]["heads"], found["all"]["neurons"]
    rows.append(["all", _overlap(heads), "", "", _overlap(neurons), "", ""])
    columns = ("layer", "heads shared", "only A", "only B", "neurons shared", "only A", "only B")
    notes = [
        "Shared: units kept by both over units kept by either (Jaccard); in brackets, by chance at the same widths.",
        "Heads are named, counted from 1; neurons are counted.",
    ]
    if found["same"]:
        notes.insert(0, "The two keep the same heads and neurons.")
    return Sheet(f"A {first}, B {second}", columns, rows, notes)


def _overlap(values: dict[str, Any]) -> str:
    return f"{values['jaccard']:.0%} ({values['by_chance']:.0%})"
