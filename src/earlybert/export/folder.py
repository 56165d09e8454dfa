"""The folder of an export: whole, or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..anatomy import Refused
from ..ticket.files import and_remedy, half_folder, is_disk_error


@contextmanager
def new_folder(folder: str | Path, model: Any = None, tokenizer: Any = None) -> Iterator[Path]:
    """A folder beside `folder` to write in, which takes its name when nothing was raised.

    Args:
        folder: Not there yet, or empty.
        model: Its configuration is written as a plain `config.json`, for labels and sizes.
        tokenizer: Written along.

    Raises:
        Refused: There is something in it already, or the disk is full or read-only.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Refused(f"{target} exists; choose another folder to export to.")
    try:
        with half_folder(target) as fresh:
            if model is not None:
                (fresh / "config.json").write_text(model.config.to_json_string(), encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save_pretrained(fresh)
            yield fresh
            fresh.rename(target)
    except Exception as error:
        if is_disk_error(error):
            raise Refused(f"{target} could not be written {and_remedy(error)}, and export again.") from error
        raise
