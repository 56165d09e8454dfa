"""The Hugging Face hub: asked once whether it answers, and left alone when it does not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from ..anatomy import Refused, first_line
from ..ticket.store import quiet

PATIENCE = 4.0
"""Seconds for the hub to answer at all; its own clients try six times over, and wait in between."""


@contextmanager
def hub(*, offline: bool) -> Iterator[None]:
    """Around loading by name: from the cache alone when `offline`, or when the hub does not answer.

    The clients read a flag of theirs at every request; the environment variables count only at their import.
    """
    switches: list[tuple[Any, str]] = [(constants, "HF_HUB_OFFLINE")]
    if "datasets.config" in sys.modules:
        switches.append((sys.modules["datasets.config"], "HF_HUB_OFFLINE"))
    before = [getattr(module, name) for module, name in switches]
    cut_off = offline or constants.HF_HUB_OFFLINE or not _answers()
    for module, name in switches:
        setattr(module, name, cut_off)
    try:
        yield
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)


def locally(path: str) -> bool:
    """Whether the name of a model or a data set is a folder, for which no hub is needed."""
    return Path(path).is_dir()


def split(repository: str, name: str | None, part: str, *, offline: bool) -> list[dict[str, Any]]:
    """The rows of one split of a data set on the hub, or of the copy in the cache.

    Raises:
        Refused: It is not to be had.
    """
    import datasets

    what = f"{repository}{f' ({name})' if name else ''}"
    try:
        with quiet(), hub(offline=offline):
            return datasets.load_dataset(repository, name, split=part).to_list()  # pyright: ignore
    except Exception as error:  # the hub client raises many kinds; all mean that the data is not to be had
        why = why_missing(offline=offline) or f"split {part!r}: {first_line(error)}"
        raise Refused(f"data set {what} could not be loaded: {why}; with local files, give --data-dir.") from error


def why_missing(*, offline: bool) -> str | None:
    """Why what was asked for by name was not to be had, where the hub was not asked or did not answer; else None."""
    if offline:
        return "it is not in the cache, and --offline forbids the hub"
    return None if _answers() else f"{constants.ENDPOINT} cannot be reached, and it is not in the cache"


@lru_cache(maxsize=1)
def _answers() -> bool:
    """Whether the hub answers, asked once a process; what it answers does not matter."""
    from huggingface_hub import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # as many kinds as there are HTTP clients
        return False
    return True
