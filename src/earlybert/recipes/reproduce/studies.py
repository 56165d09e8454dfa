"""Tables and figures of pre-training: a study of `recipes.study`, set beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.checks import BadSetting
from ..study.estimate import estimate, refuse_without_device
from ..study.result import StudyResult, StudyRow
from ..study.run import refuse_without_text, run_study, with_corpus
from ..study.scale import merged, read_scaled
from ..study.study import SEARCH, Study
from . import experiment
from .claims import Runs
from .experiment import OWN, Scale, Table, read
from .record import Record, Row, judged

RUNS = "pretraining"
"""Folder of the runs that studies share, below the output."""


@dataclass(frozen=True, kw_only=True)
class Pretraining(Table):
    """A table or figure of pre-training, checked."""

    study: Study
    changes: Mapping[str, float]
    """The paper's change in percent to a row's own 100 % of the steps."""
    corpus: Path | None
    """Of its text; prepared from `text` when the table is run, where it is not there."""
    text: tuple[str, ...]

    def size(self) -> str:
        """What it will take, in words."""
        return estimate(self.study)

    def check(self, *, force: bool = False) -> None:
        """Before anything runs.

        Args:
            force: Long runs without a GPU are all right.

        Raises:
            BadSetting: It wants a corpus, and none is named.
            Refused: It is too long for this machine, or there is neither a corpus nor text.
        """
        if self.corpus is not None:
            refuse_without_text(self.corpus, self.text)
        elif any(cell.kind != "finetune" for cell in self.study.cells()):
            raise BadSetting(
                f"{self.title} is pre-trained: say --corpus FOLDER, and --text FILES where it is still empty."
            )
        refuse_without_device(self.study, force=force)


def pretraining(name: str, scale: Scale, given: Mapping[str, Any]) -> Pretraining:
    """A table or figure of pre-training.

    Args:
        name: One of `names()` whose file has a `base`.
        scale: `paper` or `small`.
        given: `seeds` and `jobs`, and `data_dir` and `offline` for its fine-tuning, `corpus` and `text`.

    Raises:
        BadSetting: The file, or what was given, is wrong.
    """
    said = read(name)
    own = {
        key: value for key, value in read_scaled(experiment.folder() / f"{name}.yaml", scale).items() if key not in OWN
    }
    own = merged(own, {key: given[key] for key in ("seeds", "jobs") if key in given})
    places = {key: given[key] for key in ("data_dir", "offline") if key in given}
    study = Study.of(merged(own, {"finetune": places}))
    rows = [*study.runs] if study.finetuning is None or len(study.runs) > 1 else [*study.finetuning.methods]
    corpus = Path(given["corpus"]) if given.get("corpus") else None
    text = tuple(given.get("text") or ())
    return Pretraining.said(
        name, scale, said, rows, study=study, changes=said.get("changes", {}), corpus=corpus, text=text
    )


def run_pretraining(each: Pretraining, output: Path, command: str) -> Record:
    """Run what was checked, and write down what it came to; its corpus is prepared first, where it is not there.

    Raises:
        Refused: As `with_corpus` and `run_study`.
    """
    runs = output / RUNS
    study = each.study if each.corpus is None else with_corpus(each.study, each.corpus, each.text)
    result = run_study(study, output / each.name, runs=runs, force=True)
    found = _runs(study, result, runs)
    rows = {row.name: _row(each, row, found) for row in result.rows}
    record = Record(
        each.name,
        each.title,
        each.caption,
        each.scale,
        _differs(each),
        len(each.study.seeds),
        rows,
        [judged(claim, found) for claim in each.claims],
        result.environment,
        command,
        each.remarks,
        [f"{row.name}: {why}" for row in result.rows for why in row.failures],
        _figures(each, output),
        {row.name: _more(each, row) for row in result.rows},
    )
    record.save(output)
    return record


def _runs(study: Study, result: StudyResult, runs: Path) -> Runs:
    named = {row.name: row for row in result.rows}
    tasks = tuple(study.finetuning.tasks) if study.finetuning is not None else ("search",)

    def where(task: str, row: str, seed: int) -> Path:
        folders = named[row].folders if row in named else {}
        return runs / folders.get(f"{task}, seed {seed}", folders.get(f"pretrain, seed {seed}", "none"))

    costs = {name: _costs(study, row, result) for name, row in named.items()}
    return Runs(
        tasks,
        study.seeds,
        where,
        {name: cost[0] for name, cost in costs.items()},
        {name: cost[1] for name, cost in costs.items()},
        rough=study.jobs != 1,
    )


def _costs(study: Study, row: StudyRow, result: StudyResult) -> tuple[float | None, float | None]:
    """Of pre-training; where rows differ in their fine-tuning alone, of that."""
    if study.finetuning is None or len(study.finetuning.methods) == 1:
        own = row.pretrained
        return (None, None) if own is None else (own.flops_of_dense, own.seconds_of_dense)
    dense = next((other for other in result.rows if study.finetuning.method_of(str(other.method)) == "dense"), None)
    shares = [
        mine / theirs
        for task, mine in row.finetune_flops.items()
        if dense is not None and mine is not None and (theirs := dense.finetune_flops[task])
    ]
    return (sum(shares) / len(shares) if shares else None), None


def _row(each: Pretraining, row: StudyRow, found: Runs) -> Row:
    scores = {task: None if score is None else 100 * score for task, score in row.scores.items()}
    paper = each.published.get(row.name, {})
    return Row(scores, paper, found.flops[row.name], found.seconds[row.name], each.saved.get(row.name))


def _more(each: Pretraining, row: StudyRow) -> dict[str, Any]:
    """What tables of pre-training show besides scores."""
    more: dict[str, Any] = {}
    own = row.pretrained
    if own is not None and each.study.method_of(row.run) != SEARCH:
        searching = f"{own.search_steps:,.0f} + " if own.search_steps else ""
        more["steps"] = f"{searching}{own.train_steps:,.0f}"
        more["held-out loss"] = own.mlm_loss
        more["masked tokens found"] = None if own.masked_accuracy is None else f"{own.masked_accuracy:.1%}"
    if each.changes:
        theirs = each.changes.get(row.name)
        ours = "-" if row.change is None else f"{row.change:+.1%}"
        more["change"] = ours if theirs is None else f"{ours} ({theirs:+.2f}%)"
    return more


def _figures(each: Pretraining, output: Path) -> list[str]:
    """Copies beside the record of what the study has drawn."""
    written: list[str] = []
    for file in sorted((output / each.name).glob("*.svg")):
        copy = output / f"{each.name}-{file.name}"
        copy.write_bytes(file.read_bytes())
        written.append(copy.name)
    return written


def _differs(each: Pretraining) -> str:
    study = each.study
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    seed = next(iter(study.seeds))
    size = study.settings_of(next(iter(study.runs)), seed)
    minutes = size.get("minutes")
    if each.scale == "paper":
        long = "" if minutes is None else f", {minutes:g} minutes by the clock instead of steps"
        return f"{seeds}{long}; the paper's settings on other hardware, widths in multiples of 64."
    if all(study.method_of(row) == SEARCH for row in study.runs):
        long = f"a search of {size['search_steps']:,} steps"
    else:
        long = f"{size['steps']:,} steps" if minutes is None else f"{minutes:g} minutes in steps"
    rows, begun = "", ""
    if study.finetuning is not None:
        rows = f", fine-tuned on {study.finetuning.settings['train_rows']:,} rows"
        begun = " Such a model has only begun to learn: its fine-tuned scores are near those of no pre-training."
    shared = "" if study.jobs == 1 else " Runs shared the machine, so their times are rough."
    return (
        f"Not as in the paper: a BERT of {size['layers']} layers of {size['hidden']}, {long} of "
        f"{size['batch']} rows of {size['length']} tokens{rows}, {seeds}.{begun}{shared}"
    )
