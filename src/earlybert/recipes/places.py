"""Settings that are paths: the same place may be named in other words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATHS = ("like", "model", "data_dir", "train_file", "validation_file")
"""Settings of `Finetune` that name a file or a folder."""


def alike(name: str, ours: Any, theirs: Any) -> bool:
    """Whether two values of a setting say the same: equal, or the same place on disk.

    Args:
        name: Of the setting.
        ours: A value of it.
        theirs: Another.
    """
    if name not in PATHS or ours is None or theirs is None:
        return ours == theirs
    return Path(ours).resolve() == Path(theirs).resolve()


def same_places(config: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The paths of a run, where these settings name the same places in other words."""
    theirs = {name: getattr(config, name) for name in PATHS if settings.get(name) is not None}
    return {name: value for name, value in theirs.items() if alike(name, settings[name], value)}
