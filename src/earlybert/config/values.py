"""Settings from plain values and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .checks import BadSetting, named, shown

IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def typed(settings: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Settings as their dataclass wants them, from the plain values of a YAML file.

    Args:
        settings: By name.
        kind: The dataclass.

    Raises:
        BadSetting: One is unknown or of another type.
    """
    hints = _hints(kind)
    return {name: _typed(name, value, hints[named(name, hints, "setting")]) for name, value in settings.items()}


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _typed(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        return named(value, get_args(hint), name)
    kinds = get_args(hint) or (hint,)
    if type(value) in kinds:
        return value
    if float in kinds and type(value) in (int, str):
        try:
            return float(value)  # YAML reads 1e-4 as text
        except (ValueError, OverflowError):
            pass
    raise BadSetting(f"{name} must be {in_words(hint)}, got {shown(value)}.")


def in_words(hint: Any) -> str:
    """What a setting of this type may be, for a sentence."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(part for part in (", ".join(inner[:-1]), inner[-1]) if part)
    if origin is list:
        return "a list of whole numbers such as [1, 2]" if inner == (int,) else "a list such as [a, b]"
    if origin is dict:
        return "names with settings"
    kinds = [kind for kind in inner or (hint,) if kind is not type(None)]
    if kinds == [int, float]:
        return "a whole number or a fraction"
    return " or ".join(IN_WORDS.get(kind) or in_words(kind) for kind in kinds)


def changed(before: Any, after: Any) -> list[str]:
    """Names of the settings that differ, for a refusal to mix two runs."""
    return [f.name for f in fields(before) if getattr(before, f.name) != getattr(after, f.name)]


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values, for YAML."""
    return {f.name: getattr(config, f.name) for f in fields(config)}
