"""What is pre-trained and what it is fine-tuned on, as one YAML file says, and the runs that they come to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ...config.checks import BadSetting, above_zero, between, named
from ...config.finetune import Finetune
from ...config.pretrain import Architecture, EarlyDrawing, EarlySearch, Pretrain
from ...config.recipe import with_recipe
from ...config.values import to_dict, typed
from ..comparison.comparison import Comparison, by_name, slug
from ..grid import Cell
from .scale import SCALES

SEARCH = "search"
"""A row whose `method` this is ends with its search: for its mask distances."""
OF_A_TICKET = {f.name for part in (EarlySearch, EarlyDrawing) for f in fields(part)} - {"method"}
OF_A_SEARCH = {f.name for f in fields(EarlySearch)} - {"method", "share"}
"""Settings that other methods have no use for: rows that differ in them alone are the same run."""
OF_A_ROW = ("model", "against")
"""In a row: weights that are taken as they are, and the row that its scores are set beside."""
PLACES = {"corpus", "data_dir", "offline", "model", "like"}
"""Settings that say where something is, and are no part of a run's address."""
KEYS = ("runs", "pretrain", "methods", "tasks", "finetune", "seeds", "jobs", "text")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Pre-training runs, and the fine-tuning of each.

    A dense row with a `share` takes that share of the steps, or of its budget of time; a ticket's is the setting of
    that name, which leaves a budget of time whole.
    """

    runs: Mapping[str, Mapping[str, Any]]
    """Rows by name, with settings of `Pretrain` of their own; or `model`, for weights that are there."""
    pretrain: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `Pretrain` for all rows."""
    finetuning: Comparison | None = None
    """Methods and tasks of the fine-tuning, the same for every row; None: nothing is fine-tuned."""
    seeds: tuple[int, ...] = (1,)
    """Seed k of pre-training is fine-tuned with seed k."""
    jobs: int = 1
    """Runs at once, 0 for as many as there is room for."""
    text: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `Preparation` for the corpus, where it is still to be prepared."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Study:
        """From the plain values of a YAML file, one scale of it, checked.

        Raises:
            BadSetting: Anything is unknown, repeated or missing; nearest names are offered.
        """
        for name in given:
            if name in SCALES:
                raise BadSetting(f"the study has a section {name!r}: say which scale is meant.")
            named(name, KEYS, "key of a study")
        for name in ("pretrain", "finetune", "text"):
            if not isinstance(given.get(name) or {}, Mapping):
                raise BadSetting(f"{name} must hold settings (name: value), got {given[name]!r}.")
        if not given.get("runs"):
            raise BadSetting("a study needs runs: rows by name, with settings of their own.")
        seeds = given.get("seeds") or [1]
        pretrain, shared = dict(given.get("pretrain") or {}), dict(given.get("finetune") or {})
        if "model" in shared:
            raise BadSetting("finetune has no model of its own: the rows' models are fine-tuned.")
        tasks, methods = given.get("tasks"), given.get("methods") or ["dense"]
        both = {"tasks": tasks, "methods": methods, "seeds": seeds, "jobs": given.get("jobs", 1)}
        study = cls(
            runs=by_name(given["runs"], "run"),
            pretrain=pretrain,
            finetuning=Comparison.of({**shared, **both}) if tasks else None,
            seeds=tuple(seeds),
            jobs=given.get("jobs", 1),
            text=dict(given.get("text") or {}),
        )
        study._check()
        return study

    def _check(self) -> None:
        if not all(type(seed) is int for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise BadSetting(f"seeds are whole numbers, each once, got {list(self.seeds)!r}.")
        between("jobs", self.jobs, 0)
        if self.finetuning is not None and any(self.finetuning.trials(row) for row in self.finetuning.methods):
            raise BadSetting("a study does not tune: give each method its settings.")
        for row, own in self.runs.items():
            self.against(row)
            if "model" in own:
                if set(own) - set(OF_A_ROW):
                    raise BadSetting(f"{row} takes its weights from a model; it has no settings of pre-training.")
                continue
            for seed in self.seeds:
                Pretrain(**self.settings_of(row, seed))

    def against(self, row: str) -> str:
        """The row that the scores of another are set beside: as it says, or the first."""
        given = self.runs[row].get("against")
        return next(iter(self.runs)) if given is None else named(given, self.runs, "row to stand against")

    def method_of(self, row: str) -> str:
        """The method of a row's pre-training."""
        method = {**self.pretrain, **self.runs[row]}.get("method", Pretrain.method)
        return named(method, ("ticket", "dense", "random", SEARCH), "method of pre-training")

    def settings_of(self, row: str, seed: int) -> dict[str, Any]:
        """Settings of a row's pre-training; its own win over the shared ones."""
        own = {name: value for name, value in self.runs[row].items() if name not in OF_A_ROW}
        method = self.method_of(row)
        merged = typed({**self.pretrain, **own, "method": "ticket" if method == SEARCH else method}, Pretrain)
        if method == "dense":
            merged = _stopped(merged, own.get("share", 1.0))
        useless = {"dense": OF_A_TICKET, "random": OF_A_SEARCH, SEARCH: {"share"}}.get(method, set())
        return {**{name: value for name, value in merged.items() if name not in useless}, "seed": seed}

    def dense_row(self, row: str) -> str | None:
        """The longest dense row of the same model, which costs are set beside; None without one.

        Rows by steps stand beside one by steps, rows by the clock beside one by the clock, where there is one.
        """
        if "model" in self.runs[row]:
            return None
        sizes = [f.name for f in fields(Architecture)]

        def config(name: str) -> Pretrain:
            return Pretrain(**self.settings_of(name, self.seeds[0]))

        mine = config(row)
        found = {
            other: config(other)
            for other, own in self.runs.items()
            if "model" not in own and self.method_of(other) == "dense"
        }
        same = [name for name, its in found.items() if all(getattr(its, s) == getattr(mine, s) for s in sizes)]
        alike = [name for name in same if (found[name].minutes is None) == (mine.minutes is None)]
        return max(alike or same, key=lambda name: (found[name].minutes or 0.0, found[name].steps), default=None)

    def pretraining(self, row: str, seed: int) -> Cell | None:
        """The run of pre-training behind a row; None when its weights are there already."""
        if "model" in self.runs[row]:
            return None
        settings, method = self.settings_of(row, seed), self.method_of(row)
        mark = _address(to_dict(Pretrain(**settings)))
        return Cell(f"pretrain/{method}-{mark}", settings, kind="search" if method == SEARCH else "pretrain")

    def finetunings(self, row: str, seed: int) -> dict[tuple[str, str], Cell]:
        """The runs of fine-tuning behind a row, by method and task."""
        if self.finetuning is None or self.method_of(row) == SEARCH:
            return {}
        comparison, before = self.finetuning, self.pretraining(row, seed)
        made: dict[tuple[str, str], Cell] = {}

        def make(method: str, task: str) -> Cell:
            if (method, task) not in made:
                settings, needs = comparison.settings_of(task, method, seed), dict[str, str]()
                if before is None:
                    settings["model"] = self.runs[row]["model"]
                else:
                    needs["model"] = before.name
                like = comparison.needs(method)
                if like is not None:
                    needs["like"] = make(like, task).name
                whole = to_dict(Finetune(**with_recipe({**settings, "like": needs.get("like")})))
                mark = _address({**whole, "needs": needs or settings["model"]})
                name = f"finetune/{slug(task)}-{slug(comparison.method_of(method))}-{mark}"
                made[method, task] = Cell(name, settings, needs=needs, keep_model=False)
            return made[method, task]

        return {(method, task): make(method, task) for method in comparison.methods for task in comparison.tasks}

    def cells(self) -> list[Cell]:
        """All runs, each once: pre-training first, seed by seed."""
        pairs = [(row, seed) for seed in self.seeds for row in self.runs]
        before = [cell for pair in pairs if (cell := self.pretraining(*pair)) is not None]
        after = [cell for pair in pairs for cell in self.finetunings(*pair).values()]
        return list({cell.name: cell for cell in (*before, *after)}.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and JSON."""
        own = {
            "runs": {row: dict(own) for row, own in self.runs.items()},
            "pretrain": dict(self.pretrain),
            "seeds": list(self.seeds),
            "jobs": self.jobs,
            "text": dict(self.text),
        }
        if self.finetuning is None:
            return own
        given = self.finetuning
        tasks, methods = (
            {name: dict(value) for name, value in which.items()} for which in (given.tasks, given.methods)
        )
        return {**own, "tasks": tasks, "methods": methods, "finetune": dict(given.settings)}


def _stopped(settings: dict[str, Any], share: Any) -> dict[str, Any]:
    """A dense run of a share of the steps in both phases, or of the time."""
    if not isinstance(share, int | float):
        raise BadSetting(f"share must be a number, got {share!r}.")
    above_zero("share", share)
    between("share", share, 0, 1)
    if (minutes := settings.get("minutes")) is not None:
        return {**settings, "minutes": share * minutes}
    second = settings.get("second", Pretrain.second)
    steps = {"steps": round(share * settings.get("steps", Pretrain.steps))}
    return {**settings, **steps, **({"second": round(share * second)} if type(second) is int else {})}


def _address(settings: Mapping[str, Any]) -> str:
    """The same for the same run, wherever its data lies."""
    told = {name: value for name, value in settings.items() if name not in PLACES}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]
