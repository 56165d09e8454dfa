"""Tickets: coefficients, scores, drawing, cutting. No training, and no need of the rest of the package."""

from .distance import Distance, mask_distance
from .draw import draw, keep_mask
from .gates import Gates
from .history import History, HistoryWriter
from .scores import Scores
from .settled import Settled
from .store import load, save, ticket_of
from .surgery import CutMismatch, apply, rebind
from .ticket import Ticket

__all__ = [
    "CutMismatch",
    "Distance",
    "Gates",
    "History",
    "HistoryWriter",
    "Scores",
    "Settled",
    "Ticket",
    "apply",
    "draw",
    "keep_mask",
    "load",
    "mask_distance",
    "rebind",
    "save",
    "ticket_of",
]
