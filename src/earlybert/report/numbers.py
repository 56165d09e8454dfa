"""The numbers of a run as table rows: each with the raw value it was read from, and as a person reads it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..config.finetune import Finetune
from ..config.pretrain import Pretrain
from ..train.profile import PARTS
from ..train.steplog import NO_STEPS, STAGES
from .folder import RunRecord
from .metrics import MEMORY, parts_of

RIVAL_NAMES = {"dense": "dense", "dense_same_flops": "dense, same cost", "ticket": "ticket"}
"""Rows of `compare.json`, as they are called on the page."""


@dataclass(frozen=True)
class Resampled:
    """What resampling the predictions of a run says; empty without predictions."""

    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """95 % interval of each metric, over the validation examples."""
    difference: Mapping[str, Any] | None = None
    """Headline score minus that of the dense model at the same cost: `mean`, `low`, `high`."""


@dataclass(frozen=True)
class Cell:
    """One number on the page; `value` is exactly what the run folder says, `text` is for reading."""

    key: str
    value: Any
    text: str


PATHS = ("data_dir", "corpus", "train_file", "validation_file", "model", "like")
"""Settings that may be paths."""
NOTHING = Cell("", None, "–")


@dataclass(frozen=True)
class Table:
    """Rows of cells under a title."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def overview(runs: Sequence[RunRecord], judged: Sequence[Resampled]) -> Table:
    """Runs side by side, a column each."""
    finished = [run.metrics or {} for run in runs]
    names = list(dict.fromkeys(name for metrics in finished for name in metrics.get("score", {})))
    rows: list[tuple[str, list[Cell]]] = [
        ("task", [Cell("task", run.task, run.task) for run in runs]),
        ("model", [Cell("model", run.model, run.model) for run in runs]),
        ("method", [Cell("method", run.method, run.method) for run in runs]),
    ]
    rows += [(name, [_score(run, about, name) for run, about in zip(runs, judged, strict=True)]) for name in names]
    rows += [
        ("training time", [_of(m, "seconds", duration) for m in finished]),
        ("wall-clock time", [_of(m, "elapsed", duration) for m in finished]),
        ("training TFLOP", [_of(m, "flops", tera) for m in finished]),
        ("tokens/s", [speed(m, "tokens_per_second") for m in finished]),
        ("MFU", [speed(m, "mfu") for m in finished]),
        ("parameters", [_of(m.get("parameters"), "after", millions, "parameters.after") for m in finished]),
        ("size on disk", [_of(m, "disk_bytes", megabytes) for m in finished]),
        ("heads kept", [_kept(run, "heads") for run in runs]),
        ("neurons kept", [_kept(run, "neurons") for run in runs]),
        ("training rows", [_of(m, "train_rows", whole) for m in finished]),
        ("seed", [Cell("seed", seed, str(seed)) for seed in (run.config.get("seed", "–") for run in runs)]),
    ]
    applies = [(name, cells) for name, cells in rows if any(cell is not NOTHING for cell in cells)]
    return Table("What each run came to", [run.name for run in runs], applies)


def rivals(compare: Mapping[str, Any]) -> Table:
    """The ticket, the dense model, and the dense model at the ticket's cost."""
    columns = {name: compare["rows"][name] for name in RIVAL_NAMES}
    first = columns["dense"]
    headline = first["headline"]

    def relative(metrics: Mapping[str, Any], name: str, show: Any) -> str:
        return f"{show(metrics[name])} ({metrics[name] / first[name]:.2f})"

    def cells(key: str, value: Any, text: Any) -> list[Cell]:
        return [Cell(f"{name}.{key}", value(metrics), text(metrics)) for name, metrics in columns.items()]

    rows = [
        (headline, cells("score", lambda m: m["score"][headline], lambda m: f"{m['score'][headline]:.4f}")),
        ("training time", cells("seconds", lambda m: m["seconds"], lambda m: relative(m, "seconds", duration))),
        ("training TFLOP", cells("flops", lambda m: m["flops"], lambda m: relative(m, "flops", tera))),
        (
            "parameters",
            cells("parameters", lambda m: m["parameters"]["after"], lambda m: millions(m["parameters"]["after"])),
        ),
        ("size on disk", cells("disk_bytes", lambda m: m["disk_bytes"], lambda m: megabytes(m["disk_bytes"]))),
    ]
    if all("inference_ms_per_row" in metrics for metrics in columns.values()):
        key = "inference_ms_per_row"
        rows.append(("inference a row", cells(key, lambda m: m[key], lambda m: f"{m[key]:.2f} ms")))
    return Table("Against its rivals (in brackets: of the dense run)", list(RIVAL_NAMES.values()), rows)


def saving(compare: Mapping[str, Any]) -> Table:
    """Where the saved time came from, as shares of the dense run's."""
    names = {
        "fewer_epochs": "from fewer epochs",
        "smaller_network": "from the smaller network",
        "engine": "from another engine",
        "search": "search and drawing",
        "time": "saved in all",
    }
    parts = compare["saved"]
    rows = [(names[key], [Cell(f"saved.{key}", parts[key], f"{parts[key]:+.1%}")]) for key in names if key in parts]
    return Table("Where the saving came from", ["of the dense training time"], rows)


def times(run: RunRecord) -> Table:
    """Steps, seconds and FLOPs of each stage."""
    stages = (run.metrics or {}).get("stages") or {name: sums.to_dict() for name, sums in run.stages.items()}
    rows: list[tuple[str, list[Cell]]] = []
    for stage in (name for name in STAGES if name in stages):
        sums = stages[stage]
        rows.append(
            (
                stage,
                [
                    Cell(f"{stage}.steps", sums["steps"], whole(sums["steps"]) if stage not in NO_STEPS else "–"),
                    Cell(f"{stage}.seconds", sums["seconds"], duration(sums["seconds"])),
                    Cell(f"{stage}.flops", sums["flops"], tera(sums["flops"])),
                    Cell(
                        f"{stage}.mean_step_seconds",
                        sums["mean_step_seconds"],
                        f"{1e3 * sums['mean_step_seconds']:.1f} ms" if stage not in NO_STEPS else "–",
                    ),
                ],
            )
        )
    return Table("Where the time went", ["steps", "seconds", "TFLOP", "a step"], rows)


PART_NAMES = {"host": "host (data)", "whole": "one graph"}
"""Parts of a step that have another name on the page."""


def step_parts(run: RunRecord) -> dict[str, dict[str, float]]:
    """Seconds of each part of a step, by stage; with `dense` where the dense model was trained for comparison."""
    found = {stage: dict(run.profile[stage]) for stage in STAGES if stage in run.profile}
    dense = parts_of((run.compare or {}).get("rows", {}).get("dense", {}).get("profile", {}))
    return {**found, **({"dense": dense["train"]} if found and "train" in dense else {})}


def parts(run: RunRecord) -> Table:
    """Where the time of a step goes: host, forward, backward, optimizer."""
    by_stage = step_parts(run)
    names = [name for name in PARTS if any(name in each for each in by_stage.values())]

    def cells(stage: str, each: Mapping[str, float]) -> list[Cell]:
        key = "dense.profile.train" if stage == "dense" else f"profile.{stage}"
        shown = [Cell(f"{key}.{n}", each[n], milliseconds(each[n])) if n in each else NOTHING for n in names]
        return [*shown, Cell("", None, milliseconds(sum(each.values())))]

    rows = [(stage, cells(stage, each)) for stage, each in by_stage.items()]
    columns = [*(PART_NAMES.get(name, name) for name in names), "together"]
    return Table("A step taken apart (medians of a few extra steps)", columns, rows)


def memory(run: RunRecord) -> Table:
    """Bytes that training holds, by shapes, and the most that was measured on a GPU."""
    metrics, rows = run.metrics or {}, list[tuple[str, Sequence[Cell]]]()
    held = metrics.get("memory")
    if held is not None:
        whens = ("before", "after")
        for part, name in zip(MEMORY, ("parameters", "gradients", "optimizer state"), strict=True):
            rows.append((name, [Cell(f"memory.{w}.{part}", held[w][part], megabytes(held[w][part])) for w in whens]))
        rows.append(("together", [Cell("", None, megabytes(sum(held[w][part] for part in MEMORY))) for w in whens]))
    key = "peak_memory_bytes"
    if metrics.get(key) is not None:
        dense = (run.compare or {}).get("rows", {}).get("dense", {}).get(key)
        first = Cell(f"dense.{key}", dense, megabytes(dense)) if dense is not None else NOTHING
        rows.append(("peak on the GPU, measured", [first, Cell(key, metrics[key], megabytes(metrics[key]))]))
    return Table("Memory of training, activations left out", ["dense", "this run"], rows)


def before_and_after(run: RunRecord) -> Table:
    """FLOPs, parameters and size of the dense model, and of what was trained."""
    rows: list[tuple[str, list[Cell]]] = []
    metrics, dense = run.metrics, (run.compare or {}).get("rows", {}).get("dense")
    if metrics is not None:
        before, after = (metrics["parameters"][when] for when in ("before", "after"))
        rows.append(
            (
                "parameters",
                [Cell("parameters.before", before, millions(before)), Cell("parameters.after", after, millions(after))],
            )
        )
    counted = (metrics or {}).get("flops_a_token")
    a_token = (
        {stage: flops_a_token(run, stage) for stage in ("search", "train")}
        if counted is None
        else {when: counted[when] for when in ("before", "after")}
    )
    if all(a_token.values()):
        cells = [Cell(f"flops_a_token.{key}", value, megaflops(value or 0)) for key, value in a_token.items()]
        rows.append(("FLOPs a token", cells))
    if metrics is not None:
        for key, name, show in (("flops", "training TFLOP", tera), ("disk_bytes", "size on disk", megabytes)):
            first = Cell(f"dense.{key}", dense[key], show(dense[key])) if dense else NOTHING
            rows.append((name, [first, Cell(key, metrics[key], show(metrics[key]))]))
    if run.ticket is not None:
        whole_heads, whole_neurons = (
            run.ticket.layers * size for size in (run.ticket.num_heads, run.ticket.num_neurons)
        )
        rows.append(("heads", [Cell("heads.before", whole_heads, whole(whole_heads)), _kept(run, "heads")]))
        rows.append(("neurons", [Cell("neurons.before", whole_neurons, whole(whole_neurons)), _kept(run, "neurons")]))
    return Table("Before and after", ["dense", "this run"], rows)


def shares_left(table: Table) -> dict[str, float]:
    """Of `before_and_after`: what is left, by row, where both sides are known."""
    return {name: cells[1].value / cells[0].value for name, cells in table.rows if all(cell.value for cell in cells)}


def flops_a_token(run: RunRecord, stage: str) -> float | None:
    """Forward and backward; the search runs on the dense model, training on the ticket."""
    lines = [line for line in run.steps if line["stage"] == stage and line.get("tokens")]
    if run.pretraining and stage == "train":
        lines = lines[: second_phase(run)]  # rows as long as those of the search
    tokens = sum(line["tokens"] for line in lines)
    return sum(line["flops"] for line in lines) / tokens if tokens else None


def second_phase(run: RunRecord) -> int | None:
    """Index among the steps of training where phase 2 of pre-training begins: where the learning rate rises again.

    None where there is one phase, or the second has not begun.
    """
    if not run.pretraining or not run.config.get("second", 0.1):
        return None
    rates = [line["lr"] for line in run.steps if line["stage"] == "train" and "lr" in line]
    fell = False
    for index in range(1, len(rates)):
        if fell and rates[index] > rates[index - 1]:
            return index
        fell = fell or rates[index] < rates[index - 1]
    return None


def settings(run: RunRecord) -> list[tuple[str, str, bool]]:
    """Name, value, and whether it is not the default."""
    return [(name, str(value), not _is_default(run.settings, name, value)) for name, value in run.config.items()]


def command(run: RunRecord, *, public: bool = False) -> str:
    """The command line that makes this run again: every setting that is not the default.

    Args:
        run: With its config.
        public: Of paths show the last part alone; where somebody's files lie is nobody else's business.
    """
    words = ["earlybert", "search" if run.only_searched else "finetune"]
    if run.pretraining:
        processes = (run.metrics or {}).get("processes", 1)
        launched = ["torchrun", "--nproc-per-node", str(processes), "-m", "earlybert"]
        words = [*(launched if processes > 1 else ["earlybert"]), "pretrain"]
    for item in fields(run.settings):
        value = run.config.get(item.name)
        if value is not None and not _is_default(run.settings, item.name, value):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            if public and item.name in PATHS and Path(text).is_absolute():
                text = Path(text).name
            words += [f"--{item.name.replace('_', '-')}", text]
    if run.compare is not None:
        words.append("--compare")
    return shlex.join(words)


def _is_default(kind: type[Finetune] | type[Pretrain], name: str, value: Any) -> bool:
    if name not in kind.__dataclass_fields__:
        return False
    default = kind.__dataclass_fields__[name].default
    if name == "max_length" and default == 0:
        from ..config.finetune import DEFAULT_LENGTH

        default = DEFAULT_LENGTH  # what 0 stands for where no task says otherwise
    return type(value) is type(default) and value == default


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"


def milliseconds(seconds: float) -> str:
    """Seconds of a step."""
    return f"{1e3 * seconds:.3g} ms"


def megaflops(flops: float) -> str:
    """FLOPs of a token."""
    return f"{flops / 1e6:.1f} MFLOP" if flops >= 1e6 else f"{flops:,.0f} FLOP"


def tera(flops: float) -> str:
    """FLOPs as TFLOP."""
    return f"{flops / 1e12:.4g}"


def millions(count: float) -> str:
    """Parameters."""
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,.0f}"


def megabytes(size: float) -> str:
    """Bytes."""
    return f"{size / 1e6:.1f} MB"


def whole(count: float) -> str:
    """A count."""
    return f"{count:,.0f}"


def _of(metrics: Mapping[str, Any] | None, key: str, show: Any, name: str | None = None) -> Cell:
    return Cell(name or key, metrics[key], show(metrics[key])) if metrics and key in metrics else NOTHING


def speed(metrics: Mapping[str, Any], key: str, stage: str = "train") -> Cell:
    """Of a pre-training run: `tokens_per_second`, `flops_per_second` or `mfu` of a stage."""
    value = metrics.get("speed", {}).get(stage, {}).get(key)
    if value is None:
        return NOTHING
    text = {"tokens_per_second": whole, "flops_per_second": tera, "mfu": "{:.1%}".format}[key](value)
    return Cell(f"speed.{stage}.{key}", value, text)


def _score(run: RunRecord, judged: Resampled, name: str) -> Cell:
    value = (run.metrics or {}).get("score", {}).get(name)
    if value is None:
        return NOTHING
    around = judged.intervals.get(name)
    text = f"{value:.4f}" + (f" ({around[0]:.3f} to {around[1]:.3f})" if around else "")
    return Cell(f"score.{name}", value, text)


def _kept(run: RunRecord, kind: str) -> Cell:
    if run.ticket is None:
        return NOTHING
    count = run.ticket.heads_kept if kind == "heads" else run.ticket.neurons_kept
    return Cell(f"{kind}.kept", count, whole(count))
