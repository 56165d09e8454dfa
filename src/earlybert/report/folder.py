"""What a run folder holds, and what it lacks: every part is read on its own, a broken one is said and left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..anatomy import Refused
from ..config import METHODS, RIVALS
from ..config_file import parse
from ..ticket import History, Scores, Ticket
from ..train.steplog import STAGES, Totals, read_steps, totals

Part = TypeVar("Part")
MEMORY = ("parameters", "gradients", "optimizer")
PARTS = ("host", "forward", "backward", "optimizer", "whole")
"""Of a step, as `train.profile` names them."""
CONFIG = "config.yaml"
BROKEN = (
    *(Refused, OSError, RecursionError),
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
)
"""What reading a file that is not what its name says may raise."""


@dataclass(frozen=True)
class Importance:
    """The scores a ticket was drawn from, as plain arrays."""

    heads: NDArray[np.float32]
    """`[layers, heads]`."""
    neurons: NDArray[np.float32]
    """`[layers, neurons]`."""
    source: str
    """`coefficients`, or the name of another importance."""
    steps: int
    info: dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """One run as its folder tells it. A part is None, or empty, when it is not there or cannot be used."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] | None = None
    compare: dict[str, Any] | None = None
    ticket: Ticket | None = None
    scores: Importance | None = None
    history: History | None = None
    steps: tuple[dict[str, Any], ...] = ()
    stages: dict[str, Totals] = field(default_factory=dict)
    profile: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By stage, median seconds of each part of a step (`train.profile.PARTS`)."""
    missing: tuple[str, ...] = ()
    """A sentence for each part that is not shown."""

    @property
    def name(self) -> str:
        """The folder's own name, with its parent's where it is a run inside another (`dense`)."""
        inner = (self.path.parent / CONFIG).exists()
        return f"{self.path.parent.name}/{self.path.name}" if inner else self.path.resolve().name

    @property
    def task(self) -> str:
        """Name of the task, or of the file it was trained on."""
        known = (self.metrics or {}).get("task") or self.config.get("task") or self.config.get("train_file")
        return str(known or "unknown task")

    @property
    def method(self) -> str:
        """A key of `config.METHODS`."""
        return str(self.config.get("method", "ticket"))

    @property
    def cuts(self) -> bool:
        """Whether a ticket is part of its method."""
        return self.method not in RIVALS and not (self.method in METHODS and METHODS[self.method].dense)


def read(path: Path) -> RunFolder:
    """Read what is there.

    Raises:
        Refused: It is no run folder at all.
    """
    if not (path / CONFIG).is_file():
        raise Refused(f"{path} is not a run folder: it has no {CONFIG}.")
    missing: list[str] = []

    def part(name: str, load: Callable[[Path], Part], without: str, *, wanted: bool = True) -> Part | None:
        if not (path / name).exists():
            if wanted:
                missing.append(f"{name} is not there: {without}.")
            return None
        try:
            return load(path / name)
        except BROKEN:
            missing.append(f"{name} is broken: {without}.")
            return None

    config = part(CONFIG, _config, "the settings and the command are not known") or {}
    draft = RunFolder(path, config)
    searched = draft.cuts and draft.method in ("ticket", "mlm_search")
    metrics = part("metrics.json", _metrics, "the run is not finished, so it has no score and no size")
    ticket = part("ticket.json", Ticket.load, "no heads and neurons were chosen yet", wanted=draft.cuts)
    scores = part("scores.safetensors", _scores, "the search has not finished", wanted=draft.cuts)
    if ticket is not None and scores is not None and scores.heads.shape != (ticket.layers, ticket.num_heads):
        missing.append("scores.safetensors is of another model than ticket.json: heads are shown without scores.")
        scores = None
    stages = part("steps.jsonl", _stages, "there are no curves and no times") or ({}, ())
    return RunFolder(
        path=path,
        config=config,
        metrics=metrics,
        compare=part(
            "compare.json",
            _compare,
            "nothing says what the run saved, nor what the dense model reaches at the same cost "
            "(earlybert finetune --compare trains both)",
            wanted=draft.method == "ticket",
        ),
        ticket=ticket,
        scores=scores,
        history=part("history.bin", _history, "there are no mask distances and no coefficients", wanted=searched),
        stages=stages[0],
        steps=stages[1],
        profile=part("profile.json", _profile, "nothing says where the time of a step goes", wanted=False) or {},
        missing=tuple(missing),
    )


def _config(file: Path) -> dict[str, Any]:
    return parse(file.read_bytes())


def _metrics(file: Path) -> dict[str, Any]:
    return _whole(json.loads(file.read_bytes()))


def _whole(metrics: Any) -> dict[str, Any]:
    """`metrics`, when it has what the page shows.

    Raises:
        ValueError: A number is not one. KeyError and TypeError: it is not there.
    """
    numbers = [
        *metrics["score"].values(),
        metrics["score"][metrics["headline"]],
        metrics["seconds"],
        metrics["flops"],
        metrics["disk_bytes"],
        metrics["validation_rows"],
        metrics["train_rows"],
        *(metrics["parameters"][when] for when in ("before", "after")),
    ]
    for sums in metrics["stages"].values():
        numbers += [sums[key] for key in ("steps", "seconds", "flops", "mean_step_seconds")]
    numbers += [metrics[key] for key in ("inference_ms_per_row",) if key in metrics]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError
    if not all(metrics[key] > 0 for key in ("seconds", "flops")) or min(metrics["parameters"].values()) <= 0:
        raise ValueError
    _whole_additions(metrics)
    environment = dict(metrics["environment"])
    return {**metrics, "environment": {**environment, "versions": dict(environment.get("versions", {}))}}


def _whole_additions(metrics: Mapping[str, Any]) -> None:
    """What only newer runs have.

    Raises:
        ValueError: A number is not one. KeyError, TypeError and AttributeError: it is not there.
    """
    numbers = [metrics[key] for key in ("peak_memory_bytes",) if metrics.get(key) is not None]
    if "memory" in metrics:
        numbers += [metrics["memory"][when][part] for when in ("before", "after") for part in MEMORY]
    if metrics.get("flops_a_token") is not None:
        numbers += [metrics["flops_a_token"][key] for key in ("length", "before", "after")]
    if not all(isinstance(number, int | float) and math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError
    parts_of(metrics.get("profile", {}))


def _profile(file: Path) -> Mapping[str, Mapping[str, float]]:
    return parts_of(json.loads(file.read_bytes()))


def parts_of(profile: Any) -> dict[str, dict[str, float]]:
    """Seconds of each part of a step, by stage, from `profile.json` or the `profile` of `metrics.json`.

    Raises:
        ValueError: It is not one. TypeError, KeyError and AttributeError: the same.
    """
    found = {stage: dict(about["seconds"]) for stage, about in profile.items()}
    for stage, parts in found.items():
        numbers = parts.values()
        if stage not in STAGES or not parts or not set(parts) <= set(PARTS):
            raise ValueError
        if not all(isinstance(n, int | float) and 0 <= n < math.inf for n in numbers) or not sum(numbers) > 0:
            raise ValueError
    return found


def _compare(file: Path) -> dict[str, Any]:
    result = json.loads(file.read_bytes())
    rows = {name: _whole(result["rows"][name]) for name in ("dense", "dense_same_flops", "ticket")}
    saved = {name: float(value) for name, value in result["saved"].items()}
    if not all(math.isfinite(saved[name]) for name in ("time", "fewer_epochs", "smaller_network", "search")):
        raise ValueError
    if any(row["headline"] != rows["ticket"]["headline"] for row in rows.values()):
        raise ValueError
    return {"rows": rows, "saved": saved}


def _scores(file: Path) -> Importance:
    scores = Scores.load(file, weights=False)
    heads, neurons = (np.stack([vector.numpy() for vector in part]) for part in (scores.heads, scores.neurons))
    return Importance(heads, neurons, scores.source, scores.steps, scores.info)


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
