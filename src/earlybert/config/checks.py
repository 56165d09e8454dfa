"""What a setting may be, told in a sentence when it is not."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

LONGEST = 1_500
"""Characters of a sentence."""
LONGEST_SHOWN = 60
"""Characters of a wrong value that a sentence repeats."""


class BadSetting(ValueError):
    """A setting is out of range; the message says which and what it may be."""


def sentence(text: str) -> str:
    """One line: line breaks and other control characters become spaces, and what is too long is cut."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= LONGEST else line[:LONGEST] + "..."


def named(name: str, known: Any, what: str) -> str:
    """`name`, if it is known; nearest names are offered when not.

    Raises:
        BadSetting: It is not known.
    """
    if isinstance(name, str) and name in known:
        return name
    hint = (nearest(name, known) if isinstance(name, str) else None) or f"there are {', '.join(known)}."
    raise BadSetting(f"unknown {what} {shown(name)}; {hint}")


def nearest(name: str, known: Any, *, most: int = 3, cutoff: float = 0.5) -> str | None:
    """The question whether a known name was meant; None where none is near.

    Args:
        name: That is not known.
        known: Names.
        most: So many are offered.
        cutoff: How alike they are at least, from 0 to 1.
    """
    near = get_close_matches(name[:LONGEST_SHOWN], list(known), n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else None


def shown(value: Any) -> str:
    """A wrong value for a sentence: itself where it is short, else what it is."""
    if isinstance(value, int) and abs(value) > 1e300:
        return "a number beyond 1e300"
    if isinstance(value, str | int | float | None):
        return repr(
            value if not isinstance(value, str) or len(value) <= LONGEST_SHOWN else value[:LONGEST_SHOWN] + "..."
        )
    return f"a {type(value).__name__}"


def between(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Both ends included.

    Raises:
        BadSetting: It is outside, or not finite.
    """
    if not low <= value <= high or value == float("inf"):
        limits = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise BadSetting(f"{name} must be {limits}, got {shown(value)}.")


def above_zero(name: str, value: float) -> None:
    """More than 0, and finite.

    Raises:
        BadSetting: It is not.
    """
    if not 0 < value < float("inf"):
        raise BadSetting(f"{name} must be above 0, got {shown(value)}.")
