"""One YAML file for the paper's setting and for one that runs here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...anatomy import first_line
from ...config.checks import BadSetting, named

SCALES = ("paper", "small")
"""Sections of such a file; what stands outside of them holds for both."""
BASE = "base"
"""Names another file beside this one, whose settings this one's are merged over."""


def read_scaled(path: Path, scale: str) -> dict[str, Any]:
    """The settings of one scale of a YAML file, and of the file that it names as its `base`.

    Args:
        path: The file.
        scale: `paper` or `small`.

    Raises:
        BadSetting: A file cannot be read or is no mapping, or as `scaled`.
    """
    try:
        given = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise BadSetting(f"{path} cannot be read: {first_line(error)}.") from None
    if not isinstance(given, Mapping):
        raise BadSetting(f"{path} must hold settings (name: value).")
    own = dict(given)
    base = own.pop(BASE, None)
    mine = scaled(own, scale)
    return mine if base is None else merged(read_scaled(path.parent / str(base), scale), mine)


def scaled(given: Mapping[str, Any], scale: str) -> dict[str, Any]:
    """The settings of one scale: its section merged over what is common.

    Args:
        given: What a YAML file says.
        scale: `paper` or `small`.

    Raises:
        BadSetting: There is no such scale, or its section is not a mapping.
    """
    section = given.get(named(scale, SCALES, "scale")) or {}
    if not isinstance(section, Mapping):
        raise BadSetting(f"{scale} must hold settings (name: value), got {section!r}.")
    return merged({name: value for name, value in given.items() if name not in SCALES}, section)


def merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping over another, name by name, all the way down; anything else, lists too, is replaced."""
    both = dict(common)
    for name, value in own.items():
        before = both.get(name)
        both[name] = merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return both
