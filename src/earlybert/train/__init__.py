"""One optimizer step and what drives it."""

from .loop import Diverged
from .schedule import linear
from .search import search

__all__ = ["Diverged", "linear", "search"]
