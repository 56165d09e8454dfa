"""Settings from plain values and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .checks import BadSetting, named, shown


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
    words = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
    raise BadSetting(f"{name} must be {words}, got {shown(value)}.")


def changed(before: Any, after: Any) -> list[str]:
    """Names of the settings that differ, for a refusal to mix two runs."""
    return [f.name for f in fields(before) if getattr(before, f.name) != getattr(after, f.name)]


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values, for YAML."""
    return {f.name: getattr(config, f.name) for f in fields(config)}
