"""What is compared: methods, tasks and seeds, as one YAML file says, and the runs that they come to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from ...config.checks import BadSetting, named
from ...config.finetune import Data, Drawing, Finetune, Searching, Ticketing
from ...config.methods import METHODS, RIVALS, has_what_it_takes, untimed
from ...config.recipe import RECIPES, with_recipe
from ...config.values import typed
from ...tasks import NAMES
from ..grid import Cell

MARGIN = 0.3
"""Points of the headline metric by which a method may be worse and still count as not inferior."""
OF_A_TICKET = tuple(f.name for part in (Searching, Drawing, Ticketing) for f in fields(part))
"""Settings that a dense run has no use for."""
OF_A_CUT = ("weights", "rewarm", "refit", "match", "match_share", "joint")
"""Those of them that its rival has no use for either."""
OF_ALL = (*({f.name for f in fields(Data)} - {"max_length", "truncate"}), "seed")
"""Settings that decide what is trained on and scored, and so are no row's own; how much of a text is read may be."""
OF_ROWS = ("seed", "method", "like")
"""Settings that mean nothing where they are said for all rows, or for a task."""
TUNE = "tune"
"""In a row: settings with lists of values to try."""
SETTINGS = tuple(f.name for f in fields(Finetune))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared: everything but the fields below is a setting of `Finetune`.

    A row may also hold `tune`, lists of values that are tried on a part of train before the runs that count.
    """

    tasks: Mapping[str, Mapping[str, Any]]
    """Tasks by name, with settings of their own."""
    methods: Mapping[str, Mapping[str, Any]]
    """Rows of the table by name, with settings; `method` is the row's name when not given."""
    seeds: tuple[int, ...]
    """Paired: seed k of every method shares its data order and the initialisation of its head."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """For all runs."""
    jobs: int = 1
    """Runs at once, 0 for as many as there is room for; times are then those of a shared machine."""
    times: bool = True
    """Whether the tables tell times of training and inference; not where other work runs on the machine."""
    margin: float = MARGIN
    """In points, named beforehand."""
    models: str = "first"
    """Whose weights stay on disk: those of the `first` seed, or `all`."""
    chosen: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """By row and task, what tuning found; see `tuning`."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Comparison:
        """From the plain values of a YAML file and flags, checked.

        Raises:
            BadSetting: Anything is unknown, repeated or missing; nearest names are offered.
        """
        own = {f.name for f in fields(cls)} - {"settings", "chosen"}
        settings = {name: value for name, value in given.items() if name not in own}
        for name in settings:
            named(name, (*SETTINGS, *own), "setting")
        chosen: dict[str, Any] = {name: given[name] for name in own if given.get(name) is not None}
        if not chosen.get("tasks") and settings.get("train_file"):
            chosen["tasks"] = [Path(str(settings["train_file"])).name.split(".")[0]]
        for name in ("tasks", "methods", "seeds"):
            if not chosen.get(name):
                raise BadSetting(f"a comparison needs {name}: a list of at least one.")
        chosen["tasks"] = by_name(chosen["tasks"], "task")
        chosen["methods"] = by_name(chosen["methods"], "method")
        chosen["seeds"] = tuple(chosen["seeds"])
        comparison = cls(settings=settings, **chosen)
        comparison._check()
        return comparison

    def _check(self) -> None:
        for task in self.tasks:
            if not self._own_file(task):
                named(task, NAMES, "task")
        for seed in self.seeds:
            if type(seed) is not int:
                raise BadSetting(f"seeds are whole numbers, got {seed!r}.")
        repeated = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        if repeated:
            raise BadSetting(f"seeds are repeated ({', '.join(map(str, repeated))}); every seed counts once.")
        if self.jobs < 0:
            raise BadSetting(f"jobs must be at least 0, got {self.jobs}.")
        if type(self.times) is not bool:
            raise BadSetting(f"times must be true or false, got {self.times!r}.")
        if not 0 <= self.margin < float("inf"):
            raise BadSetting(f"margin must be at least 0 points, got {self.margin!r}.")
        if self.models not in ("first", "all"):
            raise BadSetting(f"models must be first or all, got {self.models!r}.")
        for what, names in (("methods", self.methods), ("tasks", self.tasks)):
            if len({slug(name) for name in names}) < len(names):
                raise BadSetting(f"two of the {what} have names that make the same folder; name them apart.")
        everywhere = {"all rows": self.settings, **self.tasks}
        for where, settings in everywhere.items():
            for name in (name for name in (*OF_ROWS, TUNE) if name in settings):
                raise BadSetting(
                    f"{name} of {where} would mean nothing; say it in a row of methods (seeds at the top)."
                )
        for row, settings in self.methods.items():
            for name in {*settings, *(settings.get(TUNE) or {})} & {*OF_ALL}:
                raise BadSetting(f"{name} is one for all rows of a comparison, {row} cannot have its own.")
            if isinstance(settings.get(TUNE), Mapping) and {"method", "like"} & {*settings[TUNE]}:
                raise BadSetting(f"tune of {row} lists settings of one method; make another row for another method.")
            self.method_of(row)
            self.needs(row)
            lists = settings.get(TUNE) or {}
            if not isinstance(lists, Mapping) or not all(
                isinstance(values, list) and values for values in lists.values()
            ):
                raise BadSetting(
                    f"tune of {row} must hold lists of values to try (lr: [4.0e-5, 8.0e-5]), got {lists!r}."
                )
        for task in self.tasks:
            for row in self.methods:
                self._refuse_untimed(task, row)
                like = {"like": "the ticket's run"} if self.needs(row) else {}
                for seed in self.seeds:
                    for trial in ({}, *self.trials(row)):
                        Finetune(**with_recipe({**self.settings_of(task, row, seed, trial), **like}))

    def _refuse_untimed(self, task: str, row: str) -> None:
        """A rival in the time of steps that are not timed behind them."""
        like = self.needs(row)
        if self.method_of(row) != "dense_same_time" or like is None:
            return
        its = self.settings_of(task, like, self.seeds[0])
        if what := untimed(self.method_of(like), its.get("cuts", 1)):
            raise BadSetting(f"{row} cannot take the time of {like}: it has {what}; use dense_same_flops.")

    def method_of(self, row: str) -> str:
        """The method that a row is of."""
        settings = self.methods[row]
        of_recipe = {} if row in METHODS else RECIPES.get(str(settings.get("recipe")), {})
        return named(settings.get("method", of_recipe.get("method", row)), METHODS, "method")

    def is_dense(self, row: str) -> bool:
        """Whether a row is the full model, stopped wherever it is."""
        return self.method_of(row) in ("dense", *RIVALS)

    def needs(self, row: str) -> str | None:
        """The row whose run this one takes something from: as `like` says, or the first ticket."""
        given = self.methods[row].get("like")
        if not METHODS[self.method_of(row)].like:
            if given is not None:
                raise BadSetting(f"{row} takes nothing from another row: leave its like out.")
            return None
        if given is not None:
            named(given, [other for other in self.methods if other != row], "row to be like")
            if not self._gives(given, self.method_of(row)):
                its = self.method_of(given)
                raise BadSetting(f"{row} cannot be like {given}, a row of method {its}: it has no ticket of its own.")
            return given
        searched = [other for other in self.methods if self.method_of(other) == "ticket"]
        if not searched:
            raise BadSetting(f"{row} takes something from a ticket: add ticket to the methods, or say like: ROW.")
        return searched[0]

    def may_have_rival(self, row: str) -> bool:
        """Whether the dense model can be stopped at the cost of a row, by a `dense_same_flops` that is like it."""
        return self._gives(row, "dense_same_flops")

    def _gives(self, row: str, method: str) -> bool:
        its = self.method_of(row)
        return not METHODS[its].like and has_what_it_takes(its, method)

    def settings_of(self, task: str, row: str, seed: int, trial: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Settings of one run; the row's win over the task's, and those over the shared ones.

        Args:
            task: Its name.
            row: Its name.
            seed: Of the run.
            trial: Settings that win over the row's own.
        """
        mine = self._row(task, row, trial or {})
        merged = {**self.settings, **self.tasks[task], **mine}
        if "recipe" not in mine:  # else it is in there, and goes before what is said for all rows
            merged = with_recipe({**merged, "method": self.method_of(row)})
        for name in ("like", TUNE):
            merged.pop(name, None)
        merged = typed(merged, Finetune)
        if METHODS[self.method_of(row)].dense:  # the same run, whatever its neighbours are cut to
            for name in OF_A_TICKET:
                merged.pop(name, None)
        if self.method_of(row) in RIVALS:
            for name in (*OF_A_CUT, "dense_steps"):  # its length is the ticket's cost
                merged.pop(name, None)
        name = {} if self._own_file(task) else {"task": task}
        return {**merged, **name, "method": self.method_of(row), "seed": seed}

    def _row(self, task: str, row: str, trial: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the row itself; one that is like another begins with those of that row, but its cut."""
        chosen = self.chosen.get(row, {}).get(task, {})
        mine = with_recipe({**self.methods[row], "method": self.method_of(row), **chosen, **trial})
        if (like := self.needs(row)) is None:
            return mine
        its = self._row(task, like, {})
        if METHODS[self.method_of(like)].dense:  # trained at dense_lr, where a rival is trained at lr
            its = {**its, "lr": {**self.settings, **self.tasks[task], **its}.get("dense_lr", Finetune.dense_lr)}
        return {**{name: value for name, value in its.items() if name not in (*OF_A_CUT, "method", "recipe")}, **mine}

    def _own_file(self, task: str) -> bool:
        """Whether a task is a person's own file, and its name here only a name."""
        return "train_file" in {**self.settings, **self.tasks[task]}

    def trials(self, row: str) -> list[dict[str, Any]]:
        """Every combination of the values that a row's `tune` lists."""
        lists: Mapping[str, Sequence[Any]] = self.methods[row].get(TUNE) or {}
        return (
            [typed(dict(zip(lists, values, strict=True)), Finetune) for values in product(*lists.values())]
            if lists
            else []
        )

    def cells(self) -> list[Cell]:
        """All runs: seed by seed, so that a comparison that is stopped has whole seeds."""
        return [
            Cell(
                cell_name(task, row, seed),
                self.settings_of(task, row, seed),
                needs={} if (like := self.needs(row)) is None else {"like": cell_name(task, like, seed)},
                keep_model=self.models == "all" or seed == self.seeds[0],
            )
            for seed in self.seeds
            for task in self.tasks
            for row in self.methods
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("settings", "chosen")}
        plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}
        plain["seeds"] = list(self.seeds)
        return {**plain, **self.settings}


def cell_name(task: str, row: str, seed: int) -> str:
    """Where a run is below the folder of its comparison."""
    return f"{slug(task)}/{slug(row)}/seed-{seed}"


def slug(row: str) -> str:
    """A row's name as a folder's."""
    return re.sub(r"[^a-z0-9.]+", "-", row.lower()).strip("-.") or "row"


def by_name(given: Any, what: str) -> dict[str, dict[str, Any]]:
    """`[a, b]` or `{a: {...}, b: null}` to settings by name."""
    if isinstance(given, Mapping):
        rows = {str(name): value for name, value in given.items()}
        wrong = [name for name, value in rows.items() if value is not None and not isinstance(value, Mapping)]
        if wrong:
            raise BadSetting(f"{what} {wrong[0]!r} must hold settings (name: value), got {rows[wrong[0]]!r}.")
        return {name: dict(value or {}) for name, value in rows.items()}
    names = [given] if isinstance(given, str) else list(given)
    repeated: Sequence[str] = sorted({str(name) for name in names if names.count(name) > 1})
    if repeated:
        raise BadSetting(f"{what} {repeated[0]!r} is named twice.")
    return {str(name): {} for name in names}
