"""What is said of a pre-training run alone: held-out loss, speed, and the dense run of the same cost beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .folder import RunRecord
from .headline import Headline, smaller
from .metrics import SECOND
from .numbers import NOTHING, Cell, Table, duration, speed, tera

SAME_COST = 0.05
"""Costs that differ by no more than this share are called the same."""
TITLES = {
    "mlm_loss": "loss, nats a masked token",
    "masked_accuracy": "masked tokens found",
    "nsp_loss": "loss of next sentences, nats a row",
}
"""Scores, as they are called on the page."""
SCORED = ("eval_rows", "length", "pairs", "across", "whole_words")
"""Settings that decide what held-out rows there are."""


def headline(run: RunRecord, beside: Sequence[RunRecord]) -> Headline:
    """Of a finished pre-training run.

    Args:
        run: The run.
        beside: The runs on the same page; a dense one among them is the rival of a ticket.
    """
    assert run.metrics is not None
    metrics, score = run.metrics, run.metrics["score"]
    line = f"Held-out loss {score['mlm_loss']:.3f}, {score['masked_accuracy']:.1%} of masked tokens found"
    trained = metrics["speed"]["train"]
    if trained["mfu"] is None:
        share = "its share of the device's peak is not known"
    else:
        share = f"{trained['mfu']:.1%} of the device's peak (MFU)"
    cost = (
        f"It took {duration(metrics['elapsed'])} and {tera(metrics['flops'])} TFLOP"
        f"{', the search included' if 'search' in metrics['stages'] else ''}; "
        f"training ran at {trained['tokens_per_second']:,.0f} tokens/s, {share}."
    )
    if run.method == "dense":
        return Headline(line, (cost, "Method: dense, the full model.", smaller(run)))
    named = () if run.method == "ticket" else (f"Method: {run.method}.",)
    return Headline(line, (cost, *named, _rival(run, beside), smaller(run)))


def _rival(run: RunRecord, beside: Sequence[RunRecord]) -> str:
    others = [other for other in beside if other.pretraining and other.method == "dense" and other.metrics is not None]
    if not others:
        return (
            "What it saved is not known: its honest rival, a dense pre-training run of the same cost, is not beside "
            "it. Train one by earlybert pretrain --method dense, with as many --steps as cost the same, or in the same "
            "--minutes, and show both: earlybert report RUN DENSE."
        )
    alike = [other for other in others if scored_on(other) == scored_on(run)]
    if not alike:
        return (
            f"The dense run beside it, {others[0].name}, was scored on other held-out rows, so the two losses do not "
            "compare."
        )
    rival = min(alike, key=lambda other: min(abs(math.log(share)) for share in _costs(run, other)))
    assert run.metrics is not None
    assert rival.metrics is not None
    score, flops, took = rival.metrics["score"], *_costs(run, rival)
    same = [share for share in (flops, took) if abs(share - 1) <= SAME_COST]
    who = "The honest rival, the dense run of the same cost" if same else "The dense run beside it"
    name = rival.name if rival.model == run.model else f"{rival.name} ({rival.model})"
    apart = run.metrics["score"]["mlm_loss"] - score["mlm_loss"]
    verdict = (
        f"the loss of the {run.method} run is {abs(apart):.3f} {'higher' if apart > 0 else 'lower'}, with one seed"
        if round(apart, 3)
        else "the two losses are the same to three digits"
    )
    sentence = (
        f"{who}, {name}, reached a loss of {score['mlm_loss']:.3f} and {score['masked_accuracy']:.1%} with "
        f"{flops:.2f} times the FLOPs and {took:.2f} times the time of this run: {verdict}."
    )
    return sentence if same else f"{sentence} That is not the same cost, so it is no honest rival."


def _costs(run: RunRecord, rival: RunRecord) -> tuple[float, float]:
    """FLOPs and wall-clock time of the rival, relative to those of the run."""
    assert run.metrics is not None
    assert rival.metrics is not None
    return rival.metrics["flops"] / run.metrics["flops"], rival.metrics["elapsed"] / run.metrics["elapsed"]


def scored_on(run: RunRecord) -> tuple[Any, ...]:
    """What two runs have to share for their held-out losses to compare: the corpus, and the rows taken from it."""
    return ((run.metrics or {}).get("corpus"), *(run.config.get(name) for name in SCORED))


def held_out(run: RunRecord) -> Table:
    """Scores on held-out documents, at the lengths of both phases."""
    metrics = run.metrics or {}
    places = {"score": "length", SECOND: "second_length"}
    columns = {key: setting for key, setting in places.items() if key in metrics}

    def cell(key: str, name: str) -> Cell:
        value = metrics[key].get(name)
        return NOTHING if value is None else Cell(f"{key}.{name}", value, f"{value:.4f}")

    scores: list[str] = list(dict.fromkeys(name for key in columns for name in metrics[key]))
    rows: list[tuple[str, list[Cell]]] = [
        (TITLES.get(name, name), [cell(key, name) for key in columns]) for name in scores
    ]
    lengths = [f"{run.config.get(setting, 'unknown')} tokens" for setting in columns.values()]
    return Table("On held-out documents, in rows of", lengths, rows)


def speeds(run: RunRecord) -> Table:
    """Tokens and FLOPs a second over step times, and their share of the device's peak."""
    metrics = run.metrics or {}
    stages = [stage for stage in ("search", "train") if stage in metrics.get("speed", {})]
    names = {"tokens_per_second": "tokens/s", "flops_per_second": "TFLOP/s", "mfu": "MFU"}
    rows = [(name, [speed(metrics, key, stage) for stage in stages]) for key, name in names.items()]
    return Table("Speed", stages, [row for row in rows if any(cell is not NOTHING for cell in row[1])])


def curve(run: RunRecord) -> list[dict[str, float]]:
    """Held-out scores on the way and at the end, steps of the search counted in; none of a fine-tuning run."""
    if not run.pretraining:
        return []
    searched = run.stages["search"].steps if "search" in run.stages else 0
    points, metrics = list(run.evaluations), run.metrics
    if metrics is not None and "train" in metrics["stages"]:
        last = metrics["stages"]["train"]["steps"]
        end = {"step": last, "seconds": metrics["elapsed"], **metrics["score"]}
        points = [*(point for point in points if point["step"] < last), end]
    return [{**point, "step": point["step"] + searched} for point in points]
