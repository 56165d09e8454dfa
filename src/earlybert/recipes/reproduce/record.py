"""What a table or figure came to: the paper's numbers beside ours, and its claims. Plain data, and Markdown of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...anatomy import Refused
from ...report.sheet import Sheet
from ...ticket.files import write_atomically
from ..comparison.verdict import mean_over_tasks
from .claims import CHECKS, OF_SCORES, Runs
from .experiment import Claim

FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    scores: Mapping[str, float | None]
    """Points by task, mean over seeds; None where every run failed."""
    paper: Mapping[str, float]
    """The paper's, by its own tasks; `mean` where it gives no more."""
    flops: float | None
    """Training FLOPs, of the dense run's."""
    seconds: float | None
    """Training time, of the dense run's."""
    paper_saved: float | None = None
    """Training time saved in percent, in the paper."""

    @property
    def mean(self) -> float | None:
        """Over tasks; None where one is missing."""
        return mean_over_tasks(list(self.scores.values()))


@dataclass(frozen=True)
class Judged:
    """A claim and what became of it."""

    says: str
    answer: str
    evidence: str


def judged(claim: Claim, runs: Runs) -> Judged:
    """Check a claim; a file that a check needs and cannot read leaves it open."""
    try:
        found = CHECKS[claim.check](runs, **claim.given)
    except Refused as error:
        return Judged(claim.says, "open", str(error))
    of_one = len(runs.seeds) == 1 and CHECKS[claim.check] in OF_SCORES and found.answer != "open"
    return Judged(claim.says, f"{found.answer} (one seed)" if of_one else found.answer, found.evidence)


@dataclass(frozen=True)
class Record:
    """A table or figure, as it was run."""

    name: str
    title: str
    caption: str
    scale: str
    differs: str
    """What is not as in the paper: model, data, hardware."""
    seeds: int
    rows: Mapping[str, Row]
    claims: Sequence[Judged]
    environment: Mapping[str, Any]
    command: str
    remarks: Sequence[str] = ()
    failures: Sequence[str] = ()
    figures: Sequence[str] = ()
    """Files beside this one."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of this table alone, by row and name."""

    def save(self, folder: Path) -> None:
        """Write `NAME.json` and `NAME.md`."""
        content = json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode() + b"\n"
        write_atomically(folder / f"{self.name}.json", content)
        write_atomically(folder / f"{self.name}.md", self.markdown().encode())

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Record:
        """Read a `NAME.json`.

        Raises:
            Refused: It is none.
        """
        try:
            given = json.loads(Path(file).read_bytes())
            if given.pop("format") != FORMAT:
                raise ValueError
            given["rows"] = {row: Row(**values) for row, values in given["rows"].items()}
            given["claims"] = [Judged(**each) for each in given["claims"]]
            return cls(**given)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise Refused(f"{file} is no result of earlybert reproduce.") from None

    def sheet(self) -> Sheet:
        """Rows with scores (the paper's in brackets), costs, and what else there is."""
        tasks = list(dict.fromkeys(task for row in self.rows.values() for task in row.scores))
        mean = len(tasks) > 1 or any("mean" in row.paper for row in self.rows.values())
        others = list(dict.fromkeys(name for values in self.more.values() for name in values))
        columns = ["", *tasks, *(["mean"] if mean else []), *others, "FLOPs", "time"]
        rows = [
            [
                name,
                *(_score(row.scores.get(task), row.paper.get(task)) for task in tasks),
                *([_score(row.mean, row.paper.get("mean"))] if mean else []),
                *(_plain(self.more.get(name, {}).get(other)) for other in others),
                _share(row.flops),
                _share(row.seconds) + ("" if row.paper_saved is None else f" ({1 - row.paper_saved / 100:.2f})"),
            ]
            for name, row in self.rows.items()
        ]
        about = "In brackets the paper's. FLOPs and time are those of training, search included, of the dense run."
        notes = [about, self.differs, *self.remarks, *(f"Failed: {each}" for each in self.failures)]
        return Sheet(f"{self.title}: {self.caption}", tuple(columns), rows, notes)

    def claim_sheet(self) -> Sheet:
        """What became of each claim."""
        rows = [[each.says, each.answer, each.evidence] for each in self.claims]
        return Sheet(f"Claims of {self.title}", ("claim", "held?", "evidence"), rows, words=True)

    def markdown(self) -> str:
        """A section of the page."""
        date, device = str(self.environment.get("date", ""))[:10], self.environment.get("device", "")
        threads, precision = self.environment.get("threads", 0), self.environment.get("precision", "")
        versions = ", ".join(f"{name} {version}" for name, version in self.environment.get("versions", {}).items())
        pictures = [f"![{self.title}]({file})\n" for file in self.figures if file.endswith(".svg")]
        cores = "1 thread" if threads == 1 else f"{threads} threads"
        about = f"    {self.command}\n\n{date}, {device}, {cores}, {precision}; {versions}.\n"
        claims = [self.claim_sheet().markdown()] if self.claims else []
        return "\n".join([self.sheet().markdown(), *pictures, *claims, about])


def _score(ours: float | None, paper: float | None) -> str:
    text = "-" if ours is None else f"{ours:.2f}"
    return text if paper is None else f"{text} ({paper:.2f})"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
