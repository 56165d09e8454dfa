"""Did a claim of the paper hold? Three answers: it held, it did not, or these runs cannot tell.

A difference between two rows is the mean over tasks of paired differences (`statistics.over_tasks`).
"open" is the answer whenever the 95 % interval holds both the claim and its opposite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.stats import rankdata

from ...config.file import parse
from ...config.prepare import Preparation
from ...config.pretrain import Pretrain
from ...tasks import Predictions
from ...ticket import History, Ticket
from ...ticket.draw import Scope
from ...ticket.history import Kind
from ..comparison.verdict import paired
from ..kinds import RESULTS
from ..pretraining.estimate import work
from ..statistics import Difference, over_tasks

Answer = Literal["held", "not held", "open"]
SETTLED = 0.5
"""A mask has settled at a step when its distance to the last one is under this share of what chance would give."""
EARLY = 0.2
"""Share of the steps shown by which it should have."""
CLEAR = 0.5
"""Rank correlation between depth and width from which one end of the network counts as cut more."""
COST_WITHIN = 0.05
FEWEST = 10
"""Steps of a search in which a mask can settle."""
RISES = 0.05
"""Share of chance by which masks have to move more than before."""


@dataclass(frozen=True)
class Finding:
    """What became of a claim."""

    answer: Answer
    evidence: str
    """Numbers, in a sentence."""


@dataclass(frozen=True)
class Runs:
    """Results that claims are checked on."""

    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    where: Callable[[str, str, int], Path]
    """Run folder by task, row and seed."""
    flops: Mapping[str, float | None]
    """Training FLOPs by row, of the dense run's."""
    seconds: Mapping[str, float | None]
    """Training time by row, of the dense run's."""
    rough: bool = False
    """Whether runs shared the machine, so that their times tell nothing."""

    def folders(self, row: str) -> list[Path]:
        """Of a row's runs that are finished."""
        every = [self.where(task, row, seed) for task in self.tasks for seed in self.seeds]
        return [folder for folder in every if any((folder / name).exists() for name in RESULTS)]

    def apart(self, first: str, second: str) -> tuple[float, float, float] | None:
        """Points by which the first row is better, mean over tasks, with its 95 % interval."""
        found = [pair for task in self.tasks if (pair := self._paired(task, first, second)) is not None]
        if len(found) < len(self.tasks):
            return None
        mean = over_tasks(found, margin=0.0)
        return 100 * mean.mean, 100 * mean.low, 100 * mean.high

    def _paired(self, task: str, first: str, second: str) -> Difference | None:
        places = [(self.where(task, first, seed), self.where(task, second, seed)) for seed in self.seeds]
        pairs = [pair for pair in places if all((folder / "metrics.json").exists() for folder in pair)]
        if not pairs:
            return None
        ours, theirs = ([Predictions.load(pair[side] / "predictions.safetensors") for pair in pairs] for side in (0, 1))
        return paired(ours, theirs, margin=0.0)


def above(runs: Runs, *, rows: Sequence[str]) -> Finding:
    """The first row scores higher than the second."""
    return _apart(runs, rows[0], rows[1], least=0.0)


def within(runs: Runs, *, rows: Sequence[str], points: float) -> Finding:
    """The first row is at most so many points below the second."""
    return _apart(runs, rows[0], rows[1], least=-points)


def alike(runs: Runs, *, rows: Sequence[str], points: float) -> Finding:
    """No two of the rows are further apart than so many points."""
    return _all([_apart(runs, a, b, least=-points, most=points) for a, b in combinations(rows, 2)])


def best(runs: Runs, *, rows: Sequence[str]) -> Finding:
    """The first row scores higher than each of the others."""
    return _all([_apart(runs, rows[0], other, least=0.0) for other in rows[1:]])


def falls(runs: Runs, *, rows: Sequence[str]) -> Finding:
    """Each row scores lower than the one before."""
    return _all([_apart(runs, a, b, least=0.0) for a, b in pairwise(rows)])


def saves(runs: Runs, *, row: str, low: float, high: float) -> Finding:
    """Of the training FLOPs a share is saved that lies between two percentages."""
    return _saved("FLOPs", runs.flops[row], row, low, high)


def saves_time(runs: Runs, *, row: str, low: float, high: float) -> Finding:
    """The same of the training time; open where runs shared the machine."""
    found = _saved("time", runs.seconds[row], row, low, high)
    return Finding("open", f"{found.evidence}, on a machine that was shared") if runs.rough else found


def costs(runs: Runs, *, row: str, flops: float) -> Finding:
    """Training takes so many times the dense run's FLOPs."""
    found = runs.flops[row]
    if found is None:
        return MISSING
    near = abs(found / flops - 1) <= COST_WITHIN
    return Finding("held" if near else "not held", f"{row}: {found:.2f} x the FLOPs of the dense run")


def search_of_the_papers_run(runs: Runs, *, percent: float) -> Finding:
    """The search is under so many percent of the FLOPs of pre-training BERT-base; arithmetic, whatever was run."""
    parts = work(Pretrain(method="ticket"), Preparation.vocabulary).parts
    whole = work(Pretrain(method="dense"), Preparation.vocabulary)
    search, steps = parts[0], sum(part.steps for part in whole.parts)
    share = 100 * search.flops / whole.flops
    return Finding(
        "held" if share < percent else "not held",
        f"{search.steps:,} of {steps:,} steps are {100 * search.steps / steps:.1f} %, and {share:.1f} % of the FLOPs",
    )


def settles(runs: Runs, *, row: str, kind: Kind, by: float = EARLY) -> Finding:
    """By a fifth of the steps, or another share, the mask is nearer to the last than half of chance, and stays so."""
    answers: list[Finding] = []
    for folder in runs.folders(row):
        masks = _Masks.of(folder, kind)
        if masks.chance == 0 or masks.last < FEWEST:
            return Finding("open", f"{masks.last} steps of search, or nothing removed, show nothing")
        steps = sorted({max(1, round(share * masks.last)) for share in np.linspace(by, 1, 30)})
        far = [masks.apart(step, masks.last) for step in steps]
        answers.append(
            Finding(
                "held" if max(far) < SETTLED * masks.chance else "not held",
                f"after {steps[0]} of {masks.last} steps the {kind} differ from the last mask by {far[0]:.3f}, at most "
                f"{max(far):.3f} later; chance is {masks.chance:.3f}",
            )
        )
    return _all(answers) if answers else MISSING


def rises_later(runs: Runs, *, row: str, kind: Kind) -> Finding:
    """Masks a tenth of the steps apart differ more at the end than they did at some time before."""
    answers: list[Finding] = []
    for folder in runs.folders(row):
        masks = _Masks.of(folder, kind)
        steps = [round(share * masks.last) for share in np.linspace(0.1, 1, 10)]
        if masks.chance == 0 or masks.last < FEWEST:
            return Finding("open", f"{masks.last} steps of search, or nothing removed, show nothing")
        moved = [masks.apart(a, b) for a, b in pairwise(steps)]
        lowest = int(np.argmin(moved))
        rise = moved[-1] - moved[lowest]
        answers.append(
            Finding(
                "held" if rise > RISES * masks.chance else "not held",
                f"the {kind} move least ({moved[lowest]:.3f}) up to step {steps[lowest + 1]} of {masks.last}, and by "
                f"{moved[-1]:.3f} in the last tenth; chance is {masks.chance:.3f}",
            )
        )
    return _all(answers) if answers else MISSING


@dataclass(frozen=True)
class _Masks:
    """Of one search, unaligned, as its run would have drawn them."""

    history: History
    kind: Kind
    remove: int | float
    scope: Scope
    chance: float
    """Distance of two random masks of the budget."""

    @classmethod
    def of(cls, folder: Path, kind: Kind) -> _Masks:
        history, settings = History(folder / "history.bin"), parse((folder / "config.yaml").read_bytes())
        remove, scope = settings[kind], settings[f"{kind}_scope"]
        kept = float(history.mask(max(1, len(history)), kind, remove, scope).mean())
        return cls(history, kind, remove, scope, 2 * kept * (1 - kept))

    @property
    def last(self) -> int:
        """Steps of the search."""
        return len(self.history)

    def apart(self, first: int, second: int) -> float:
        """Mask distance between two steps."""
        return self.history.distance(first, second, self.kind, self.remove, self.scope).overall


def later_lose_more(runs: Runs, *, row: str) -> Finding:
    """Later layers keep fewer neurons."""
    return _depth(runs, row, sign=-1)


def earlier_lose_more(runs: Runs, *, row: str) -> Finding:
    """Earlier layers keep fewer neurons."""
    return _depth(runs, row, sign=1)


OF_SCORES, OF_COSTS = (above, within, alike, best, falls), (saves, saves_time, costs, search_of_the_papers_run)
OF_MASKS = (settles, rises_later, later_lose_more, earlier_lose_more)
CHECKS: dict[str, Callable[..., Finding]] = {check.__name__: check for check in (*OF_SCORES, *OF_COSTS, *OF_MASKS)}
"""By the names that files use."""
MISSING = Finding("open", "a run that this needs is missing or failed")
ALIKE = Finding("open", "on a task no run differs from another, as where each gives one answer for all rows")


def _apart(runs: Runs, first: str, second: str, *, least: float = -math.inf, most: float = math.inf) -> Finding:
    """Whether the first row's score, less that of the second, lies between two bounds, ends left out."""
    found = runs.apart(first, second)
    if found is None:
        return MISSING
    mean, low, high = found
    if low == high:
        return ALIKE
    inside, outside = least < low and high < most, high < least or low > most
    answer: Answer = "held" if inside else "not held" if outside else "open"
    return Finding(answer, f"{first} against {second}: {mean:+.2f} points [{low:+.2f}, {high:+.2f}]")


def _saved(what: str, share: float | None, row: str, low: float, high: float) -> Finding:
    if share is None:
        return MISSING
    saved = 100 * (1 - share)
    return Finding("held" if low <= saved <= high else "not held", f"{row}: {saved:.1f} % of the {what} saved")


def _all(found: Sequence[Finding]) -> Finding:
    """Held when every part is; not held when one is not, and those are the evidence."""
    against = [each for each in found if each.answer == "not held"]
    answer: Answer = "not held" if against else "open" if any(each.answer == "open" for each in found) else "held"
    return Finding(answer, "; ".join(dict.fromkeys(each.evidence for each in against or found)))


def _depth(runs: Runs, row: str, *, sign: int) -> Finding:
    tickets = [Ticket.load(folder / "ticket.json") for folder in runs.folders(row)]
    if not tickets:
        return MISSING
    kept = np.mean([[len(layer) for layer in ticket.neurons] for ticket in tickets], axis=0)
    rank = 0.0 if np.ptp(kept) == 0 else float(np.corrcoef(np.arange(len(kept)), rankdata(kept))[0, 1])
    answer: Answer = "held" if sign * rank >= CLEAR else "not held" if sign * rank <= -CLEAR else "open"
    widths = ", ".join(f"{each:.0f}" for each in kept)
    return Finding(answer, f"{row}: neurons kept by layer {widths}; rank correlation with depth {rank:+.2f}")
