"""Write the model of a run, or of a folder, in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer

from ..anatomy import Refused
from ..export import FORMATS
from ..ticket import load
from ..ticket.store import quiet
from .display import say


def export(source: str, *, to: str, output: str) -> Path:
    """Load a model and write it in another format, checked.

    Args:
        source: A run folder that is trained, or a model folder.
        to: A name of `earlybert.export.FORMATS`.
        output: A folder to be made.

    Raises:
        Refused: There is no such model, or it cannot be written so.
    """
    folder = Path(source)
    if (folder / "config.yaml").exists():
        folder = folder / "model"
        if not folder.exists():
            raise Refused(f"{source} is not trained yet; run earlybert train {source} first.")
    model = load(folder)
    file = FORMATS[to](model, output, tokenizer=processor(folder))
    size = sum(part.stat().st_size for part in Path(output).rglob("*") if part.is_file())
    say(f"{type(model).__name__} written to {file}, and checked against the model ({size / 1e6:,.1f} MB in all)")
    return file


def processor(folder: Path) -> Any:
    """The tokenizer or image processor of a model folder; None where it has none."""
    with quiet():
        for name, kind in (("tokenizer_config.json", AutoTokenizer), ("preprocessor_config.json", AutoImageProcessor)):
            if (folder / name).exists():
                return kind.from_pretrained(folder, local_files_only=True)
    return None
