"""Run a table or figure of the paper, and write down what it came to."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...config.finetune import Finetune
from ...config.values import typed
from ..compare import compare
from ..comparison.comparison import Comparison, cell_name
from ..comparison.verdict import Verdicts, mean_over_tasks
from ..display import display, say
from ..finetune import resumable
from ..run import Run
from .claims import Runs
from .experiment import Experiment, Scale, experiment, has, names, pretrains
from .figures import figures
from .page import write_page
from .record import Record, Row, judged
from .studies import Pretraining, pretraining, run_pretraining

MODELS = {
    "minilm": "MiniLM-L6 (22.7 M parameters, trained by its makers on MNLI, Quora and SQuAD 2.0 among others, which "
    "flatters every row alike)"
}
"""What has to be said of a model."""
RUNS = "runs"
"""Folder of the runs that tables share, below the output."""


def reproduce(
    wanted: list[str],
    scale: Scale,
    output: Path,
    given: Mapping[str, Any],
    *,
    only_check: bool = False,
    force: bool = False,
) -> list[Record]:
    """Run tables and figures one after the other; what is done already is not run again.

    Args:
        wanted: Names of `names()`; `all` is every one that has this scale.
        scale: `paper` or `small`.
        output: A folder a table below it, the runs they share, `NAME.json`, `NAME.md` and `reproduction.md`.
        given: Settings that win over the files': seeds, jobs, data_dir, offline; corpus and text for pre-training.
        only_check: Say what each would take, and run nothing.
        force: Begin what needs a GPU without one, too.

    Returns:
        A record a table; none when only checked.

    Raises:
        BadSetting: A name or a setting is wrong; before any compute.
        Refused: The paper's scale without a GPU, or data that is not there.
        KeyboardInterrupt: As it was asked for, with the command that goes on.
    """
    chosen = [name for name in names() if has(name, scale)] if wanted == ["all"] else wanted
    of_text = {name: value for name, value in given.items() if name not in ("corpus", "text")}
    tables = [
        pretraining(name, scale, given) if pretrains(name) else experiment(name, scale, of_text) for name in chosen
    ]
    for each in tables:
        say(f"{each.title}: {each.caption} {each.size()}")
    if only_check:
        return []
    for each in tables:
        each.check(force=force)
    forced = {"force": True} if force else {}
    with resumable(_command(wanted, scale, {**given, "output": output, **forced})):
        records = [_run(each, output, _command([each.name], scale, _elsewhere(given))) for each in tables]
        write_page(output)
    return records


def _command(wanted: list[str], scale: Scale, given: Mapping[str, Any]) -> str:
    """The command line that this was, or could have been."""
    words = ["earlybert", "reproduce", *wanted, "--scale", scale]
    for name, value in given.items():
        if value is None or value is False or value == []:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(json.dumps(value, separators=(",", ":")) if isinstance(value, list) else str(value))
    return shlex.join(words)


def _elsewhere(given: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a table again on another machine, whose places are others."""
    places = {"data_dir": "DATA", "corpus": "CORPUS"}
    found = {name: place for name, place in places.items() if given.get(name) is not None}
    return {**found, "seeds": given.get("seeds"), "jobs": given.get("jobs")}


def _run(each: Experiment | Pretraining, output: Path, command: str) -> Record:
    say(f"\n{each.title}: {each.caption}")
    made = run_pretraining if isinstance(each, Pretraining) else _run_finetuning
    record = made(each, output, command)  # type: ignore[arg-type]
    for sheet in (record.sheet(), *([record.claim_sheet()] if record.claims else [])):
        display.table(sheet)
    return record


def _run_finetuning(each: Experiment, output: Path, command: str) -> Record:
    folder = output / each.name
    comparison, verdicts = compare(each.comparison, folder, store=output / RUNS, inference=False)
    runs = Runs(
        tuple(comparison.tasks),
        comparison.seeds,
        lambda task, row, seed: folder / cell_name(task, row, seed),
        {row: mean_over_tasks([found.flops for found in by_task.values()]) for row, by_task in verdicts.items()},
        {row: mean_over_tasks([found.seconds for found in by_task.values()]) for row, by_task in verdicts.items()},
        rough=comparison.jobs != 1,
    )
    done = [
        run.read_metrics()
        for cell in comparison.cells()
        if (run := Run(folder / cell.name, Finetune(task="sst2"))).metrics.exists()
    ]
    record = Record(
        each.name,
        each.title,
        each.caption,
        each.scale,
        _differs(each, comparison),
        len(comparison.seeds),
        {row: _row(each, row, verdicts) for row in comparison.methods},
        [judged(claim, runs) for claim in each.claims],
        done[-1]["environment"] if done else {},
        command,
        each.remarks,
        [
            f"{row}, {task}, seed {seed}: {why}"
            for row, by_task in verdicts.items()
            for task, found in by_task.items()
            for seed, why in found.failures.items()
        ],
        figures(each, runs, verdicts, output),
    )
    record.save(output)
    return record


def _row(each: Experiment, row: str, verdicts: Verdicts) -> Row:
    by_task = verdicts[row]
    return Row(
        {task: None if found.mean is None else 100 * found.mean for task, found in by_task.items()},
        each.published.get(row, {}),
        mean_over_tasks([found.flops for found in by_task.values()]),
        mean_over_tasks([found.seconds for found in by_task.values()]),
        each.saved.get(row),
    )


def _differs(each: Experiment, comparison: Comparison) -> str:
    settings, seeds = {**asdict(Finetune()), **typed(comparison.settings, Finetune)}, len(comparison.seeds)
    runs = f"{seeds} seed{'s' if seeds > 1 else ''}"
    if each.scale == "paper":
        return f"{settings['model']}, {runs}; the paper's settings on other hardware, widths in multiples of 64."
    own = {task: said["train_rows"] for task, said in comparison.tasks.items() if said.get("train_rows")}
    others = "".join(f" ({task}: {rows:,})" for task, rows in own.items())
    return (
        f"Not as in the paper: {MODELS.get(settings['model'], settings['model'])} instead of BERT-base, "
        f"{settings['train_rows']:,} training rows a task{others}, batch {settings['batch_size']}, dense learning rate "
        f"{settings['dense_lr']:g}, search of {settings['search_epochs']:g} epochs where the row says nothing else, "
        f"{runs}, widths in multiples of 64."
        + ("" if comparison.jobs == 1 else " Runs shared the machine, so their times are rough.")
    )
