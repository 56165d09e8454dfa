"""One table or figure of the paper as a YAML file says it, at either scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml

from ...anatomy import Refused
from ...config.checks import BadSetting, named
from ..comparison.comparison import Comparison
from ..study.scale import SCALES
from .claims import CHECKS
from .estimate import estimate

if TYPE_CHECKING:
    from typing_extensions import Self

Scale = Literal["paper", "small"]
DEFAULTS, BASE = "scales.yaml", "pretraining.yaml"
"""What tables of fine-tuning, and those of pre-training, begin with."""
OWN = ("title", "caption", "published", "saved", "changes", "remarks", "claims", "plot", "maps", *SCALES)
"""What a file says of the table itself; the rest is of `Comparison`."""
ORDER = (
    *("figure1_pretraining", "figure1_finetuning", "table1", "table2", "table2_large", "figure2", "table3", "figure3"),
    *("table5", "table4", "figure4", "table6", "table7", "table8", "table9", "imp"),
)
"""As in the paper."""


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, and how it is checked."""

    says: str
    check: str
    """A key of `claims.CHECKS`."""
    given: Mapping[str, Any]
    """What that check takes."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a file says of a table or figure, whatever is run for it."""

    name: str
    title: str
    caption: str
    scale: Scale
    published: Mapping[str, Mapping[str, float]]
    """The paper's scores in points, by row and task; `mean` is over its tasks."""
    saved: Mapping[str, float]
    """The paper's training time saved in percent, by row."""
    remarks: tuple[str, ...]
    claims: tuple[Claim, ...]

    @classmethod
    def said(cls, name: str, scale: Scale, said: Mapping[str, Any], rows: Iterable[str], **own: Any) -> Self:
        """From the plain values of a file.

        Args:
            name: Of the file.
            scale: That is run.
            said: Its values.
            rows: Those of this scale.
            **own: What a kind of table has besides.

        Raises:
            BadSetting: As `claims_of`.
        """
        return cls(
            name=name,
            title=said["title"],
            caption=said["caption"],
            scale=scale,
            published=said.get("published", {}),
            saved=said.get("saved", {}),
            remarks=tuple(said.get("remarks", ())),
            claims=claims_of(name, said, rows),
            **own,
        )


@dataclass(frozen=True, kw_only=True)
class Experiment(Table):
    """A table or figure of fine-tuning, checked."""

    comparison: Comparison
    plot: Mapping[str, str]
    """Settings along x, and for each line of a figure."""
    maps: Mapping[str, Any]
    """Row whose masks are mapped, and the layer (counted from 1) that stands for the neurons."""

    def size(self) -> str:
        """What it will take, in words."""
        runs = len(self.comparison.cells())
        return f"{estimate(self.comparison) if self.scale == 'paper' else f'{runs} runs'}."

    def check(self, *, force: bool = False) -> None:
        """Before anything runs.

        Args:
            force: Long runs without a GPU are all right.

        Raises:
            Refused: The paper's scale without a GPU, or a data folder that is not there.
        """
        if self.scale == "paper" and not force and not torch.cuda.is_available():
            raise Refused(
                "the paper's scale needs a GPU, and there is none; --scale small runs here, --check only counts, "
                "--force begins it all the same."
            )
        where = self.comparison.settings.get("data_dir")
        if where is not None and not Path(str(where)).is_dir():
            raise Refused(f"--data-dir {where} is not a folder.")


def folder() -> Path:
    """Where the files are: inside the installed package, or in the source tree."""
    inside = Path(str(files("earlybert"))) / "configs" / "paper"
    return inside if inside.is_dir() else Path(__file__).parents[4] / "configs" / "paper"


def names() -> list[str]:
    """Every table and figure there is, in the paper's order."""
    found = {file.stem for file in folder().glob("*.yaml")} - {Path(DEFAULTS).stem, Path(BASE).stem}
    return sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def read(name: str) -> dict[str, Any]:
    """The plain values of a file.

    Raises:
        BadSetting: There is none of that name; nearest names are offered.
    """
    return yaml.safe_load((folder() / f"{named(name, names(), 'table or figure')}.yaml").read_text())


def has(name: str, scale: Scale) -> bool:
    """Whether a table can be made at that scale; a file says `small: null` where it cannot."""
    return read(name).get(scale, {}) is not None


def experiment(name: str, scale: Scale, given: Mapping[str, Any] | None = None) -> Experiment:
    """A fine-tuning table or figure.

    Args:
        name: One of `names()`.
        scale: `paper` is the exact setting, `small` runs on two cores.
        given: Settings that win over the file's: seeds, jobs, data_dir and any other of `Comparison`.

    Raises:
        BadSetting: The file, or what was given, is wrong.
    """
    said = read(name)
    common = yaml.safe_load((folder() / DEFAULTS).read_text())[scale]
    rest = {key: value for key, value in said.items() if key not in OWN}
    if not has(name, scale):
        raise BadSetting(f"{name} has no {scale} scale.")
    of_scale = dict(said.get(scale) or {})
    methods = _rows(said["methods"], of_scale.pop("methods", None))
    comparison = Comparison.of({**common, **rest, "methods": methods, **of_scale, **(given or {})})
    own = {"comparison": comparison, "plot": said.get("plot", {}), "maps": said.get("maps", {})}
    return Experiment.said(name, scale, said, methods, **own)


def _rows(rows: Any, of_scale: Any) -> dict[str, dict[str, Any]]:
    """A scale's list of methods chooses among them, its mapping adds settings to them."""
    known: dict[str, Any] = dict.fromkeys(rows) if isinstance(rows, list) else rows
    plain = {str(row): dict(settings or {}) for row, settings in known.items()}
    if isinstance(of_scale, list):
        return {named(row, plain, "row"): plain[row] for row in of_scale}
    for row, settings in (of_scale or {}).items():
        plain[named(row, plain, "row")].update(settings)
    return plain


def pretrains(name: str) -> bool:
    """Whether a table is of pre-training."""
    return "base" in read(name)


def claims_of(name: str, said: Mapping[str, Any], rows: Iterable[str]) -> tuple[Claim, ...]:
    """The claims of a file; those about rows that this scale leaves out are left out too.

    Raises:
        BadSetting: A claim is about no row of the file, or its check is unknown.
    """
    scales = [(said.get(scale) or {}).get("runs") or {} for scale in SCALES]
    every = [*(said.get("methods") or ()), *(said.get("runs") or ()), *(row for runs in scales for row in runs)]
    claims = [_claim(name, each, tuple(every)) for each in said.get("claims", ())]
    return tuple(claim for claim in claims if set(_rows_of(claim.given)) <= {*rows})


def _claim(name: str, given: Mapping[str, Any], rows: tuple[str, ...]) -> Claim:
    rest = {key: value for key, value in given.items() if key not in ("says", "check")}
    check = named(given["check"], CHECKS, f"check in {name}")
    for row in _rows_of(rest):
        if row not in rows:
            raise BadSetting(f"a claim of {name} is about {row!r}, which is none of its rows.")
    return Claim(given["says"], check, rest)


def _rows_of(given: Mapping[str, Any]) -> tuple[str, ...]:
    return (*given.get("rows", ()), *([given["row"]] if "row" in given else []))
