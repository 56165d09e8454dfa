"""Train BERT-class transformers in a fraction of the time with early-bird lottery tickets.

Three verbs around one plain piece of data, the ticket:

    scores = earlybert.search(model, batches, steps=400)
    ticket = earlybert.draw(scores, heads=4, neurons=0.4)
    small = earlybert.apply(model, ticket)

Chen et al., "EarlyBERT: Efficient BERT Training via Early-bird Lottery Tickets", ACL 2021.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import auto

if TYPE_CHECKING:
    from .anatomy import Refused
    from .ticket import (
        CutMismatch,
        Gates,
        History,
        Scores,
        Settled,
        Ticket,
        apply,
        draw,
        load,
        mask_distance,
        rebind,
        save,
        ticket_of,
    )
    from .train import search
    from .train.callback import EarlyBirdCallback

__version__ = "0.1.0"

# Names load on first use: `import earlybert` and `earlybert --help` do not wait for torch.
_HOMES = {
    "CutMismatch": "ticket",
    "EarlyBirdCallback": "train.callback",
    "Gates": "ticket",
    "History": "ticket",
    "Refused": "anatomy",
    "Scores": "ticket",
    "Settled": "ticket",
    "Ticket": "ticket",
    "apply": "ticket",
    "draw": "ticket",
    "load": "ticket",
    "mask_distance": "ticket",
    "rebind": "ticket",
    "save": "ticket",
    "search": "train",
    "ticket_of": "ticket",
}

__all__ = [
    "CutMismatch",
    "EarlyBirdCallback",
    "Gates",
    "History",
    "Refused",
    "Scores",
    "Settled",
    "Ticket",
    "apply",
    "draw",
    "load",
    "mask_distance",
    "rebind",
    "save",
    "search",
    "ticket_of",
]


_ROOMS = ("export", "tasks", "ticket", "train")
"""Whose further names the reference has."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})


auto.prepare()
