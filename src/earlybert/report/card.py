"""The model card of a run: what its folder says, in the layout of the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..tasks import glue, squad
from ..ticket.card import model_card, one_line
from ..ticket.ordinary import stock_type
from . import numbers
from .folder import RunRecord
from .headline import headline
from .numbers import Resampled, Table
from .sheet import Sheet

BASES = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
"""Models with a name of their own here, by their name on the hub."""
HUB = {"macro_f1": "f1"}
"""Metrics that the hub knows by another name."""


def card(run: RunRecord, judged: Resampled) -> str:
    """The card of a finished run.

    Raises:
        KeyError: The run is not finished, or its model has no config.
    """
    if run.metrics is None:
        raise KeyError("the run has no metrics")
    config = json.loads((run.path / "model" / "config.json").read_bytes())
    architecture, model_type = str(config["architectures"][0]), str(stock_type(config))
    return model_card(
        architecture, model_type, run.ticket, sections=_sections(run, judged), **_metadata(run, architecture)
    )


def _metadata(run: RunRecord, architecture: str) -> dict[str, Any]:
    assert run.metrics is not None
    model = str(run.config.get("model", ""))
    found: dict[str, Any] = {"model_name": f"{architecture} on {run.task}, {run.method}"}
    base = BASES.get(model, model)
    if base and not Path(model).exists() and base.count("/") <= 1:
        found["base_model"] = base
    data = glue.REPOSITORY if run.task in glue.TASKS else squad.TASKS.get(run.task)
    if data is not None:
        found["datasets"] = [data]
    found["metrics"] = [
        HUB.get(name, name) for name in run.metrics["score"] if name in ("accuracy", "f1", *HUB)
    ] or None
    found["eval_results"] = [
        EvalResult(
            task_type="question-answering" if run.task in squad.TASKS else "text-classification",
            dataset_type=data or "local",
            dataset_name=run.task,
            dataset_config=run.task if run.task in glue.TASKS else None,
            dataset_split="validation",
            metric_type=str(HUB.get(name, name)),
            metric_value=value,
            metric_name=f"{name} ({run.metrics['validation_rows']} rows)",
        )
        for name, value in run.metrics["score"].items()
    ]
    return found


def _sections(run: RunRecord, judged: Resampled) -> list[str]:
    assert run.metrics is not None
    where = run.metrics["environment"]
    said = headline(run, judged)
    lines = [
        "## Scores",
        "",
        f"On {run.metrics['validation_rows']:,} validation rows of {one_line(run.task)}, after training on "
        f"{run.metrics['train_rows']:,}; seed {run.config.get('seed')}.",
        "",
        "| metric | score | 95 % interval |",
        "| --- | ---: | ---: |",
    ]
    for name, value in run.metrics["score"].items():
        around = judged.intervals.get(name)
        shown = f"{around[0]:.4f} to {around[1]:.4f}" if around else "not known"
        lines.append(f"| {one_line(name)} | {value:.4f} | {shown} |")
    lines += ["", "The interval is over the validation examples (Wilson's for shares, else bootstrap), not over seeds."]
    versions = ", ".join(f"{name} {version}" for name, version in where.get("versions", {}).items())
    machine = f"{where.get('device')}, {where.get('precision')}, {where.get('date')}; {versions}"
    tables = [numbers.times(run), numbers.before_and_after(run)]
    costs = ["## Costs", *(f"{_sheet(table)}" for table in tables), f"Measured on {one_line(machine)}."]
    if run.compare is not None:
        # The card is written when training ends, and again when its rivals are trained.
        costs += [_sheet(numbers.rivals(run.compare)), one_line(f"{said.line}. {' '.join(said.sentences)}")]
    again = f"## Training it again\n\n```sh\n{numbers.command(run, public=True)}\n```"
    return ["\n".join(lines), "\n\n".join(costs), again]


def _sheet(table: Table) -> str:
    rows = [[name, *(cell.text for cell in cells)] for name, cells in table.rows]
    return Sheet(table.title, ("", *table.columns), rows).markdown().strip()
