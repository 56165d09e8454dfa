"""Run a study, and write its tables and figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from ...anatomy import Refused
from ...config.prepare import Preparation
from ...config.pretrain import Pretrain
from ...config.values import to_dict
from ...data import shards
from ...ticket import History
from ...ticket.files import write_atomically
from ..display import display, say
from ..grid import run_grid
from ..prepare import prepare
from .estimate import estimate, refuse_without_device
from .result import StudyResult, collect
from .study import SEARCH, Study
from .tables import sheets

GIVEN, RESULT, TABLES = "study.yaml", "study.json", "study.md"


def run_study(study: Study, folder: Path, *, runs: Path | None = None, force: bool = False) -> StudyResult:
    """Run what is not done yet, and write the tables. Called again, it goes on where it stopped.

    Args:
        study: What to run; its rows need `corpus` among the settings of pre-training.
        folder: For `study.yaml`, `study.json`, `study.md`, and the figures as SVG and PDF.
        runs: Folder of the runs, `folder / "runs"` when not given. Studies that share it share equal runs: a run's
            folder is named by its settings.
        force: Begin long runs without a GPU, too.

    Raises:
        Refused: There is no corpus, a run is too long for this machine, or a run that is there was made otherwise.
    """
    runs = runs or folder / "runs"
    cells = study.cells()
    say(estimate(study))
    if any(cell.kind != "finetune" and not cell.settings.get("corpus") for cell in cells):
        raise Refused("which text? give pretrain a corpus, a folder that earlybert prepare wrote.")
    refuse_without_device(study, force=force)
    text = yaml.safe_dump(study.to_dict(), sort_keys=False, allow_unicode=True)
    write_atomically(folder / GIVEN, text.encode())
    outcomes = run_grid(cells, runs, jobs=study.jobs)
    result = collect(study, runs, outcomes)
    _write(result, folder, runs)
    return result


def with_corpus(study: Study, corpus: Path, files: Sequence[str] = ()) -> Study:
    """The study on a corpus, which is prepared with the study's `text` settings if it is not there.

    Args:
        study: Whose rows have no corpus yet.
        corpus: Its folder.
        files: Text to prepare it from.

    Raises:
        Refused: As `prepare`; or there is neither a corpus nor text.
    """
    if not _is_there(corpus):
        refuse_without_text(corpus, files)
        prepare(Preparation(**study.text), files=files, output=str(corpus), resume=corpus.exists())
    return replace(study, pretrain={**study.pretrain, "corpus": str(corpus)})


def refuse_without_text(corpus: Path, files: Sequence[str]) -> None:
    """Before a study is put on a corpus.

    Raises:
        Refused: There is neither a corpus nor text to prepare it from.
    """
    if not _is_there(corpus) and not files:
        raise Refused(f"{corpus} holds no corpus; give text files to prepare it from, or another corpus.")


def _is_there(corpus: Path) -> bool:
    return (corpus / shards.MANIFEST).exists()


def _write(result: StudyResult, folder: Path, runs: Path) -> None:
    tables = sheets(result)
    for table in tables:
        display.table(table)
    where = result.environment
    versions = ", ".join(f"{name} {version}" for name, version in where.get("versions", {}).items())
    about = f"{where.get('date', '')[:10]}, {where.get('device', '')}, {where.get('precision', '')}; {versions}."
    figures = _figures(result, folder, runs)
    shown = [f"![{name}]({name}.svg)" for name in figures]
    text = "\n\n".join(["# Pre-training study", about, *(table.markdown() for table in tables), *shown])
    write_atomically(folder / TABLES, (text.rstrip() + "\n").encode())
    write_atomically(folder / RESULT, json.dumps(result.to_dict(), indent=1).encode() + b"\n")
    say(f"written: {folder / TABLES}, {RESULT}, {', '.join(figures) or 'no figures'}")


def _figures(result: StudyResult, folder: Path, runs: Path) -> list[str]:
    """Loss curves of all rows; for rows that end with their search its mask distances (Fig. 1)."""
    try:
        from ...report.losses import distance_curves, loss_curves
        from ...report.maps import DistanceMap, mask_distance_map
    except ImportError as error:
        say(f"no figures: {error.name} is not installed")
        return []
    drawings = []
    curves = {row.run: row.curve for row in result.rows if row.curve}
    if curves:
        drawings.append(loss_curves(curves))
    study, seed = result.study, result.study.seeds[0]
    for row in result.rows:
        cell = study.pretraining(row.run, seed)
        if cell is None or study.method_of(row.run) != SEARCH or not row.distances:
            continue
        drawings.append(distance_curves(row.distances))
        history = History(runs / cell.name / "history.bin")
        for kind in ("heads", "neurons"):
            if kind in row.distances:
                of = DistanceMap.of(history, kind, to_dict(Pretrain(**cell.settings)))
                drawings += [mask_distance_map(of, None), mask_distance_map(of, None, layer=0)]
    for drawing in drawings:
        drawing.save(folder)
    return [drawing.name for drawing in drawings]
