"""What a cell of a grid may be: fine-tuning, pre-training, or the search of pre-training alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from ..anatomy import Refused
from ..config.pretrain import Pretrain
from ..data import shards
from . import finetune, pretrain
from .pretraining.run import PretrainRun
from .run import AGAIN, Run

Kind = Literal["finetune", "pretrain", "search"]
RESULTS = ("metrics.json", "search.json")
"""In the folder of a finished run."""


class Recipe(Protocol):
    """How one kind of run is made, and told to be finished."""

    def finished(self, path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Metrics of a finished run; None when it is still to be run.

        Raises:
            Refused: The run that is there was made with other settings.
        """
        ...

    def run(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Run it, or go on with it."""
        ...

    def line(self, metrics: Mapping[str, Any]) -> str:
        """What it came to, in a few words."""
        ...


class Finetuning:
    """An ordinary run of `earlybert finetune`."""

    def finished(self, path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """As `Recipe.finished`."""
        if not (path / "metrics.json").exists():
            return None
        run = Run.open(path)
        finetune.refuse_other(run, settings)
        return run.read_metrics()

    def run(self, path: Path, settings: Mapping[str, Any]) -> None:
        """As `Recipe.run`."""
        start = finetune.start(settings, output=str(path), resume=(path / "config.yaml").exists(), reuse=True)
        finetune.finetune(start, compare=False, page=False)  # earlybert report makes one of any of them

    def line(self, metrics: Mapping[str, Any]) -> str:
        """As `Recipe.line`."""
        headline = metrics["headline"]
        return f"{headline} {metrics['score'][headline]:.4f}"


class Pretraining:
    """An ordinary run of `earlybert pretrain`."""

    def finished(self, path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """As `Recipe.finished`."""
        if not (path / "metrics.json").exists():
            return None
        run = PretrainRun.open(path)
        metrics = run.read_metrics()
        _refuse_other(run, settings, metrics)
        return metrics

    def run(self, path: Path, settings: Mapping[str, Any]) -> None:
        """As `Recipe.run`."""
        pretrain.pretrain(_start(path, settings), page=False)

    def line(self, metrics: Mapping[str, Any]) -> str:
        """As `Recipe.line`."""
        score = metrics["score"]
        return f"held-out loss {score['mlm_loss']:.4f}, {score['masked_accuracy']:.2%} of masked tokens found"


class Searching:
    """Stage 1 of `earlybert pretrain` alone, for its history of coefficients."""

    def finished(self, path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """As `Recipe.finished`."""
        if not (path / pretrain.SEARCHED).exists():
            return None
        run = PretrainRun.open(path)
        metrics = pretrain.read_search(run)
        _refuse_other(run, settings, metrics)
        return metrics

    def run(self, path: Path, settings: Mapping[str, Any]) -> None:
        """As `Recipe.run`."""
        pretrain.search(_start(path, settings))

    def line(self, metrics: Mapping[str, Any]) -> str:
        """As `Recipe.line`."""
        return f"{metrics['stages']['search']['steps']} steps searched"


KINDS: Mapping[Kind, Recipe] = {"finetune": Finetuning(), "pretrain": Pretraining(), "search": Searching()}


def _start(path: Path, settings: Mapping[str, Any]) -> pretrain.Start:
    return pretrain.start(settings, output=str(path), resume=(path / "config.yaml").exists())


def _refuse_other(run: PretrainRun, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """A finished run counts for these settings only if it would be made the same way again.

    Raises:
        Refused: A setting is another, or the corpus holds another text.
    """
    run.refuse_changed(replace(Pretrain(**settings), corpus=run.config.corpus), AGAIN)
    manifest = Path(str(settings.get("corpus"))) / shards.MANIFEST
    if manifest.exists() and hashlib.sha256(manifest.read_bytes()).hexdigest() != metrics["corpus"]:
        raise Refused(f"run folder {run.path} was made on another text than {manifest.parent} holds; {AGAIN}")
