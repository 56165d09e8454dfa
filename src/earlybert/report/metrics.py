"""What `metrics.json` has to hold, of a fine-tuning run and of a pre-training run, for the page to show it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..train.profile import PARTS
from ..train.steplog import STAGES

MEMORY = ("parameters", "gradients", "optimizer")
SECOND = "score_at_second_length"
"""Held-out score of a pre-training run at the length of phase 2."""


def whole(metrics: Any, *, pretraining: bool) -> dict[str, Any]:
    """`metrics`, when it has what the page shows.

    Args:
        metrics: What the file says.
        pretraining: Whether it is of a pre-training run.

    Raises:
        ValueError: A number is not one. KeyError, TypeError and AttributeError: it is not there.
    """
    numbers = [
        *metrics["score"].values(),
        *(metrics[key] for key in ("seconds", "flops", "disk_bytes")),
        *(metrics["parameters"][when] for when in ("before", "after")),
        *(_pretrained(metrics) if pretraining else _finetuned(metrics)),
    ]
    for sums in metrics["stages"].values():
        numbers += [sums[key] for key in ("steps", "seconds", "flops", "mean_step_seconds")]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise ValueError
    if not all(metrics[key] > 0 for key in ("seconds", "flops")) or min(metrics["parameters"].values()) <= 0:
        raise ValueError
    _additions(metrics)
    environment = dict(metrics["environment"])
    return {**metrics, "environment": {**environment, "versions": dict(environment.get("versions", {}))}}


def _finetuned(metrics: Mapping[str, Any]) -> list[Any]:
    """Numbers of a fine-tuning run alone."""
    found = [metrics["score"][metrics["headline"]], metrics["validation_rows"], metrics["train_rows"]]
    return found + [metrics[key] for key in ("inference_ms_per_row",) if key in metrics]


def _pretrained(metrics: Mapping[str, Any]) -> list[Any]:
    """Numbers of a pre-training run alone.

    Raises:
        ValueError: No corpus, or no time, is named.
    """
    scores = [metrics["score"], *([metrics[SECOND]] if SECOND in metrics else [])]
    found = [metrics["elapsed"], *(score[key] for score in scores for key in ("mlm_loss", "masked_accuracy"))]
    found += [value for score in scores for value in score.values()]
    for speed in metrics["speed"].values():
        found += [speed["tokens_per_second"], speed["flops_per_second"]]
        found += [speed["mfu"]] if speed["mfu"] is not None else []
    if not isinstance(metrics["corpus"], str) or not metrics["elapsed"] > 0 or "train" not in metrics["speed"]:
        raise ValueError
    if not isinstance(metrics.get("processes", 1), int):
        raise ValueError
    return found


def _additions(metrics: Mapping[str, Any]) -> None:
    """What only newer runs have.

    Raises:
        ValueError: A number is not one. KeyError, TypeError and AttributeError: it is not there.
    """
    numbers = [metrics[key] for key in ("peak_memory_bytes",) if metrics.get(key) is not None]
    if "memory" in metrics:
        numbers += [metrics["memory"][when][part] for when in ("before", "after") for part in MEMORY]
    if metrics.get("flops_a_token") is not None:
        numbers += [metrics["flops_a_token"][key] for key in ("length", "before", "after")]
    if not all(isinstance(number, int | float) and math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError
    parts_of(metrics.get("profile", {}))


def parts_of(profile: Any) -> dict[str, dict[str, float]]:
    """Seconds of each part of a step, by stage, from `profile.json` or the `profile` of `metrics.json`.

    Raises:
        ValueError: It is not one. TypeError, KeyError and AttributeError: the same.
    """
    found = {stage: dict(about["seconds"]) for stage, about in profile.items()}
    for stage, parts in found.items():
        numbers = parts.values()
        if stage not in STAGES or not parts or not set(parts) <= set(PARTS):
            raise ValueError
        if not all(isinstance(n, int | float) and 0 <= n < math.inf for n in numbers) or not sum(numbers) > 0:
            raise ValueError
    return found
