"""Write the model of a run, or of a folder, in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer

from ..anatomy import Refused
from ..config.checks import BadSetting
from ..config.file import parse
from ..export import FORMATS
from ..report.folder import ITS_OWN
from ..ticket import load, save
from ..ticket.store import quiet
from .display import say
from .pretraining.models import stopped
from .run import Run

MODEL = "model"
"""The format that is none: a folder of the model as it is."""


def export(source: str, *, to: str, output: str) -> Path:
    """Load a model and write it in another format, checked.

    Args:
        source: A run folder that is trained, a run of pre-training that was stopped in its training (of which the
            last checkpoint is taken), or a model folder.
        to: A name of `earlybert.export.FORMATS`; or `model`, the model as it is, of a run that was stopped.
        output: A folder to be made.

    Raises:
        Refused: There is no such model, or it cannot be written so.
    """
    model, tokenizer, as_is = _opened(Path(source))
    if to == MODEL:
        return _as_it_is(model, tokenizer, as_is, Path(output))
    file = FORMATS[to](model, output, tokenizer=tokenizer)
    size = sum(part.stat().st_size for part in Path(output).rglob("*") if part.is_file())
    say(f"{type(model).__name__} written to {file}, and checked against the model ({size / 1e6:,.1f} MB in all)")
    return file


def _opened(source: Path) -> tuple[Any, Any, Path | None]:
    """A model, its tokenizer or image processor, and the folder that it is in; None where it is in a checkpoint."""
    folder = source
    if (source / "config.yaml").exists():
        folder = source / "model"
        if not folder.exists() and _pretrains(source):
            return *stopped(source), None
        if not folder.exists():
            raise Refused(f"{source} is not trained yet; run {Run.open(source).goes_on} first.")
    return load(folder), processor(folder), folder


def _pretrains(run: Path) -> bool:
    """Whether a run folder is one of pre-training, as its settings tell."""
    try:
        return bool(ITS_OWN & set(parse((run / "config.yaml").read_bytes())))
    except (OSError, BadSetting):
        return False


def _as_it_is(model: Any, tokenizer: Any, folder: Path | None, output: Path) -> Path:
    if folder is not None:
        raise Refused(f"{folder} is a model folder already; choose another --to.")
    if output.exists():
        raise Refused(f"{output} exists; choose another --output.")
    save(model, output, tokenizer=tokenizer)
    say(f"{type(model).__name__} of the last checkpoint written to {output}")
    return output


def processor(folder: Path) -> Any:
    """The tokenizer or image processor of a model folder; None where it has none."""
    with quiet():
        for name, kind in (("tokenizer_config.json", AutoTokenizer), ("preprocessor_config.json", AutoImageProcessor)):
            if (folder / name).exists():
                return kind.from_pretrained(folder, local_files_only=True)
    return None
