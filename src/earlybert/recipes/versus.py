"""One ticket against the dense model, and against its real rival: the dense model stopped at the same cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rich.table import Table

from ..config.finetune import Finetune
from ..config.methods import RIVALS
from ..ticket import load
from ..ticket.files import write_atomically
from .display import display, say
from .finetuning.bench import SHARED_ORDER, Bench
from .finetuning.methods import settled
from .finetuning.plan import plan
from .finetuning.stages import begin_dense, train_stage
from .finetuning.timing import inference_seconds
from .run import Run
from .trackers import tracked


def versus(bench: Bench, run: Run, ticket: dict[str, Any]) -> dict[str, Any]:
    """Train both dense models beside a finished ticket, print one table, write `compare.json`. Of several processes the
    first does all but the training, and has the result.

    The rival gets the ticket's FLOPs, search included, the ticket's learning rate, and a schedule
    that ends where it ends.
    """
    config = bench.config
    say("now the dense model, for comparison")
    dense = _dense(bench, run, "dense")
    rival = _dense(bench, run, "dense_same_flops")
    if not bench.ranks.main:
        return {}
    steps = rival["stages"]["train"]["steps"]
    rows = {
        f"dense\n{_epochs(bench, plan(bench).dense)}": dense,
        f"dense, same cost\n{_epochs(bench, steps)}": rival,
        f"ticket\n{_length(config)}": ticket,
    }
    folders = {"dense": run.path / "dense", "dense_same_flops": run.path / "dense_same_flops", "ticket": run.path}
    models = {name: load(folder / "model").to(bench.device) for name, folder in folders.items()}
    for metrics, seconds in zip(rows.values(), inference_seconds(bench, models).values(), strict=True):
        metrics["inference_ms_per_row"] = 1e3 * seconds
    result = {"rows": dict(zip(models, rows.values(), strict=True)), "saved": saved(dense, ticket)}
    write_atomically(run.path / "compare.json", json.dumps(result, indent=2).encode() + b"\n")
    display.show(table(rows), width=100)
    say(sentence(result["saved"]))
    environment = ticket["environment"]
    say(
        f"{ticket['task']}: {ticket['train_rows']:,} training rows of at most {config.max_length} tokens, "
        f"{ticket['validation_rows']:,} to validate; {environment['device']}, "
        f"{environment['threads']} thread{'s' if environment['threads'] > 1 else ''}, "
        f"{environment['precision']}, {ticket['engine']}. "
        "Training time is search + draw + training, without data loading. "
        f"One seed: differences of a point are noise."
    )
    say(f"run folder: {run.path}")
    if config.weights == "reset" and not config.match:  # else its searched weights went with its end
        say(f"next: earlybert draw {run.path} --heads 2 --into {run.path}-2   (another ticket from the same search)")
    return result


def saved(
    dense: Mapping[str, Any], ticket: Mapping[str, Any], same_engine: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Where the time went that the ticket saved, as shares of the dense run's training time.

    Dense takes n steps of mean time t, the ticket m steps of mean time u after a search of S seconds,
    and a dense step on the ticket's engine v seconds: n t - (S + m u) = (n - m) t  [fewer epochs]
    + m (t - v)  [engine]  + m (v - u)  [smaller network]  - S  [search].

    Args:
        dense: Metrics of the dense run.
        ticket: Metrics of the run that is compared with it.
        same_engine: Metrics of a dense run on the ticket's engine, where that is another; without it, t is v.
    """
    full, small = dense["stages"]["train"], ticket["stages"]["train"]
    total = dense["seconds"]
    t, u = full["mean_step_seconds"], small["mean_step_seconds"]
    v = t if same_engine is None else same_engine["stages"]["train"]["mean_step_seconds"]
    searching = (ticket["seconds"] - small["seconds"]) - (total - full["seconds"])  # what it is held against may, too
    return {
        "time": (total - ticket["seconds"]) / total,
        "fewer_epochs": (full["steps"] - small["steps"]) * t / total,
        "engine": small["steps"] * (t - v) / total,
        "smaller_network": small["steps"] * (v - u) / total,
        "search": (0.0 - searching) / total,
        "flops": 1 - ticket["flops"] / dense["flops"],
        "step_time_ratio": u / v,
    }


def sentence(parts: dict[str, float]) -> str:
    """The saving in words."""
    whole = (
        f"saved {parts['time']:.1%} of the dense training time"
        if parts["time"] >= 0
        else f"took {1 - parts['time']:.2f} times the dense training time"
    )
    return (
        f"The ticket {whole}: {parts['fewer_epochs']:+.1%} from fewer epochs, {parts['smaller_network']:+.1%} from the "
        f"smaller network (its step takes {parts['step_time_ratio']:.2f} of a dense one), {parts['search']:+.1%} for "
        "search and drawing."
    )


def _length(config: Finetune) -> str:
    """What the ticket's run took, in words."""
    if config.weights == "keep":
        return f"{config.epochs:g} epochs,\nwith search"
    return f"search + {config.epochs:g} epochs"


def _epochs(bench: Bench, steps: int) -> str:
    return f"{steps / bench.stream(SHARED_ORDER).steps_per_epoch:.3g} epochs"


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """Accuracy, time and size, a column a model; the first one is what the others are relative to."""
    first = next(iter(rows.values()))
    headline = first["headline"]
    lines: dict[str, Callable[[dict[str, Any]], str]] = {
        headline: lambda m: f"{m['score'][headline]:.3f}",
        "training time": lambda m: f"{m['seconds']:.1f} s  ({m['seconds'] / first['seconds']:.2f})",
        "training TFLOP": lambda m: f"{m['flops'] / 1e12:.2f}  ({m['flops'] / first['flops']:.2f})",
        "parameters": lambda m: f"{m['parameters']['after'] / 1e6:.1f} M",
        "size on disk": lambda m: f"{m['disk_bytes'] / 1e6:.0f} MB",
        "inference a row": lambda m: f"{m['inference_ms_per_row']:.2f} ms",
    }
    shown = Table(title=f"{first['task']} with {first['model']} (in brackets: of the dense run)", title_justify="left")
    shown.add_column("")
    for name in rows:
        shown.add_column(name, justify="right")
    for line, show in lines.items():
        shown.add_row(line, *(show(metrics) for metrics in rows.values()))
    return shown


def _dense(bench: Bench, run: Run, method: str) -> dict[str, Any]:
    """A dense run in a folder below the ticket's, or the result of the one that is there."""
    plain: dict[str, Any] = {"weights": "reset", "rewarm": 0, "refit": 0, "match": 0.0, "joint": None}
    if method in RIVALS:
        plain["dense_steps"] = None  # its length is the ticket's cost, whatever the dense run's
    inner = Run(run.path / method, replace(bench.config, method=method, like=str(run.path), **plain))
    main = bench.ranks.main
    if bench.ranks.said(main and inner.metrics.exists()):
        return inner.read_metrics()
    if (inner.path / "config.yaml").exists():
        inner = Run.open(inner.path)
    bench = settled(replace(bench, config=inner.config))
    inner = Run(inner.path, bench.config)
    bench.ranks.wait()  # all have looked whether there are settings
    if main:
        inner.write_config()
    if method in RIVALS:
        say(f"and the dense model stopped at the ticket's cost: {bench.config.dense_steps} steps")
    with tracked(inner, main=main):
        return train_stage(bench, inner, begin_dense)[1]
