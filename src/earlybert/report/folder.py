"""What a run folder holds, and what it lacks: every part is read on its own, a broken one is said and left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..anatomy import Refused
from ..config.file import parse
from ..config.finetune import Finetune
from ..config.methods import METHODS, RIVALS
from ..config.pretrain import Pretrain
from ..ticket import History, Scores, Ticket
from ..train.steplog import STAGES, Totals, read_steps, totals
from .metrics import parts_of, whole

Part = TypeVar("Part")
CONFIG = "config.yaml"
METRICS, EVALUATIONS = "metrics.json", "evaluations.jsonl"
ITS_OWN = {f.name for f in fields(Pretrain)} - {f.name for f in fields(Finetune)}
"""Settings that only pre-training has."""
BROKEN = (
    *(Refused, OSError, RecursionError),
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
)
"""What reading a file that is not what its name says may raise."""


@dataclass(frozen=True)
class RunRecord:
    """One run as its folder tells it. A part is None, or empty, when it is not there or cannot be used."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] | None = None
    compare: dict[str, Any] | None = None
    ticket: Ticket | None = None
    scores: Scores | None = None
    """Of the search."""
    importance: Scores | None = None
    """What the ticket was drawn from: the search's scores, or others."""
    history: History | None = None
    steps: tuple[dict[str, Any], ...] = ()
    stages: dict[str, Totals] = field(default_factory=dict)
    profile: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By stage, median seconds of each part of a step (`train.profile.PARTS`)."""
    evaluations: tuple[dict[str, Any], ...] = ()
    """Of a pre-training run: `step`, `seconds`, `mlm_loss`, `masked_accuracy` on the way."""
    pretraining: bool = False
    """Whether it is one of `earlybert pretrain`."""
    only_searched: bool = False
    """Whether it ended with its search, as it was asked to."""
    missing: tuple[str, ...] = ()
    """A sentence for each part that is not shown."""
    shown_as: str | None = None
    """A name that tells it apart on a page; its own where that does."""

    @property
    def name(self) -> str:
        """The folder's own name, with its parent's where it is a run inside another (`dense`)."""
        if self.shown_as is not None:
            return self.shown_as
        inner = (self.path.parent / CONFIG).exists()
        return f"{self.path.parent.name}/{self.path.name}" if inner else self.path.resolve().name

    @property
    def settings(self) -> type[Finetune] | type[Pretrain]:
        """The dataclass of its settings."""
        return Pretrain if self.pretraining else Finetune

    @property
    def task(self) -> str:
        """Name of the task, or of the file it was trained on."""
        if self.pretraining:
            return "pre-training"
        known = (self.metrics or {}).get("task") or self.config.get("task") or self.config.get("train_file")
        return str(known or "unknown task")

    @property
    def model(self) -> str:
        """What was trained, by name, or by its size where it began with random weights."""
        if not self.pretraining:
            return str(self.config.get("model", "unknown model"))
        layers, hidden = (self.config.get(name, "unknown") for name in ("layers", "hidden"))
        return f"BERT, {layers} layers of {hidden}"

    @property
    def method(self) -> str:
        """A key of `config.METHODS`."""
        return str(self.config.get("method", "ticket"))

    @property
    def cuts(self) -> bool:
        """Whether a ticket is part of its method."""
        return self.method not in RIVALS and not (self.method in METHODS and METHODS[self.method].dense)


def read(path: Path) -> RunRecord:
    """Read what is there.

    Raises:
        Refused: It is no run folder at all.
    """
    if not (path / CONFIG).is_file():
        raise Refused(f"{path} is not a run folder: it has no {CONFIG}.")
    part = _Parts(path)
    config = part(CONFIG, _config, "the settings and the command are not known") or {}
    pretraining = bool(ITS_OWN & set(config)) if config else _is_of_pretraining(path / METRICS)
    draft = RunRecord(path, config, pretraining=pretraining)
    stages = part("steps.jsonl", _stages, "there are no curves and no times") or ({}, ())
    only_searched = _only_searched(path, stages[0])
    metrics = part(
        METRICS,
        lambda file: whole(json.loads(file.read_bytes()), pretraining=pretraining),
        "the run is not finished, so it has no score and no size",
        wanted=not only_searched,
    )
    drawn = draft.cuts and not only_searched
    ticket = part("ticket.json", Ticket.load, "no heads and neurons were chosen yet", wanted=drawn)
    scores = part("scores.safetensors", _scores, "the search has not finished", wanted=draft.cuts)
    searched = draft.method in METHODS and METHODS[draft.method].searches
    compare, evaluations = None, ()
    if pretraining:
        evaluations = part(EVALUATIONS, _evaluations, "there is no held-out loss on the way", wanted=False) or ()
    else:
        without = "nothing says what the run saved, nor what the dense model reaches at the same cost"
        again = "(earlybert finetune --compare trains both)"
        wanted = draft.method == "ticket" and metrics is not None
        compare = part("compare.json", _compare, f"{without} {again}", wanted=wanted)
    return RunRecord(
        path=path,
        config=config,
        metrics=metrics,
        compare=compare,
        ticket=ticket,
        scores=scores,
        importance=_importance(part, ticket, scores),
        history=part("history.bin", _history, "there are no mask distances and no coefficients", wanted=searched),
        stages=stages[0],
        steps=stages[1],
        profile=part("profile.json", _profile, "nothing says where the time of a step goes", wanted=False) or {},
        evaluations=evaluations,
        pretraining=pretraining,
        only_searched=only_searched,
        missing=tuple(part.missing),
    )


class _Parts:
    """Reads the files of a folder, and collects a sentence for each that is not there or broken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.missing: list[str] = []

    def __call__(self, name: str, load: Callable[[Path], Part], without: str, *, wanted: bool = True) -> Part | None:
        """What `load` makes of a file; None, and what is lost `without` it, where it makes nothing."""
        if not (self.path / name).exists():
            if wanted:
                self.missing.append(f"{name} is not there: {without}.")
            return None
        try:
            return load(self.path / name)
        except BROKEN:
            self.missing.append(f"{name} is broken: {without}.")
            return None


def _importance(part: _Parts, ticket: Ticket | None, scores: Scores | None) -> Scores | None:
    """What the ticket was drawn from, if it is of the ticket's model."""
    name, without = "sensitivity.safetensors", "heads are shown without scores"
    if (part.path / name).exists():
        scores = part(name, _scores, without)
    else:
        name = "scores.safetensors"
    if ticket is not None and scores is not None:
        sizes = len(scores.heads), len(scores.heads[0])
        if sizes != (ticket.layers, ticket.num_heads):
            part.missing.append(f"{name} is of another model than ticket.json: {without}.")
            return None
    return scores


def _is_of_pretraining(file: Path) -> bool:
    """Of a run whose settings are not known, by what its metrics name."""
    try:
        return "corpus" in json.loads(file.read_bytes())
    except BROKEN:
        return False


def _only_searched(path: Path, stages: Mapping[str, Totals]) -> bool:
    """A search that is over, and nothing after it has begun."""
    there = (path / "scores.safetensors").exists() and "train" not in stages
    return there and not any((path / name).exists() for name in (METRICS, "checkpoint.safetensors"))


def _config(file: Path) -> dict[str, Any]:
    return parse(file.read_bytes())


def _evaluations(file: Path) -> tuple[dict[str, Any], ...]:
    lines = tuple(read_steps(file))
    for line in lines:
        numbers = [line[key] for key in ("step", "seconds", "mlm_loss", "masked_accuracy")]
        if not all(map(math.isfinite, numbers)):
            raise ValueError
    return lines


def _profile(file: Path) -> Mapping[str, Mapping[str, float]]:
    return parts_of(json.loads(file.read_bytes()))


def _compare(file: Path) -> dict[str, Any]:
    result = json.loads(file.read_bytes())
    rows = {name: whole(result["rows"][name], pretraining=False) for name in ("dense", "dense_same_flops", "ticket")}
    saved = {name: float(value) for name, value in result["saved"].items()}
    if not all(math.isfinite(saved[name]) for name in ("time", "fewer_epochs", "smaller_network", "search")):
        raise ValueError
    if any(row["headline"] != rows["ticket"]["headline"] for row in rows.values()):
        raise ValueError
    return {"rows": rows, "saved": saved}


def _scores(file: Path) -> Scores:
    return Scores.load(file, weights=False)


def _history(file: Path) -> History:
    history = History(file)
    if len(history) < 2:
        raise ValueError
    # Once a coefficient is not finite it stays so: the last step tells of all.
    if not all(np.isfinite(history.coefficients(len(history), kind)).all() for kind in ("heads", "neurons")):
        raise ValueError
    return history


def _stages(file: Path) -> tuple[dict[str, Totals], tuple[dict[str, Any], ...]]:
    lines = tuple(read_steps(file))
    for line in lines:
        numbers = [line[key] for key in ("step", "seconds", "flops", "rows")]
        numbers += [line[key] for key in ("loss", "lr", "tokens") if key in line]
        if line["stage"] not in STAGES or not all(map(math.isfinite, numbers)):
            raise ValueError
    return totals(file), lines


def told_apart(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The same runs; where names repeat, as those of seeds do, with as many folders before them as tell them apart."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return list(runs)
    parts = [run.path.resolve().parts for run in runs]
    deepest = max(map(len, parts))
    for depth in range(2, deepest + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return [replace(run, shown_as=name) for run, name in zip(runs, names, strict=True)]
