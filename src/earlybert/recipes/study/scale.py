"""One YAML file for the paper's setting and for one that runs here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...config import BadSetting, named

SCALES = ("paper", "small")
"""Sections of such a file; what stands outside of them holds for both."""


def scaled(given: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """The settings of one scale: its section merged over what is common.

    Mappings are merged name by name, all the way down; anything else, lists too, is replaced.

    Args:
        given: What a YAML file says.
        scale: `paper` or `small`.

    Raises:
        BadSetting: There is no such scale, or its section is not a mapping.
    """
    section = given.get(named(scale, SCALES, "scale")) or {}
    if not isinstance(section, Mapping):
        raise BadSetting(f"{scale} must hold settings (name: value), got {section!r}.")
    return _merged({name: value for name, value in given.items() if name not in SCALES}, section)


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(common)
    for name, value in own.items():
        before = both.get(name)
        both[name] = _merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return both
