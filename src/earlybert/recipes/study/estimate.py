"""What a study will cost, before anything of it is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...anatomy import Refused
from ...config.prepare import Preparation
from ...config.pretrain import Pretrain
from ..pretraining.estimate import ASSUMED_MFU, RATE, SEARCH, STATE_BYTES, number, work
from .study import Study

CPU_RATE = 6e10
"""FLOP/s of small models in bf16 on two cores; measured roughly, and good for minutes or hours only."""
MOST_ON_CPU = 1e16
"""FLOPs of one run; at that rate 46 hours."""


@dataclass(frozen=True)
class Cost:
    """Of one run of pre-training."""

    flops: int
    """If all rows are full; of a run with a budget of time those of its search."""
    parameters: int
    """Of its dense model."""
    minutes: float | None = None
    """Its budget of time."""


def cost(config: Pretrain, vocabulary: int, *, search_only: bool = False) -> Cost:
    """What a run takes; nothing is computed.

    Args:
        config: Its settings.
        vocabulary: Tokens of the corpus's tokenizer.
        search_only: The run ends with its search.

    Raises:
        Refused: The settings do not fit each other.
    """
    found = work(config, vocabulary)
    flops = sum(part.flops for part in found.parts if part.name == SEARCH or not search_only)
    return Cost(flops, found.before, None if search_only else config.minutes)


def costs(study: Study, vocabulary: int | None = None) -> dict[str, Cost]:
    """What each run of pre-training takes, by the name of its cell.

    Raises:
        Refused: Settings of a run do not fit each other.
    """
    words = vocabulary or study.text.get("vocabulary", Preparation.vocabulary)
    found: dict[str, Cost] = {}
    for cell in study.cells():
        if cell.kind == "finetune":
            continue
        try:
            found[cell.name] = cost(Pretrain(**cell.settings), words, search_only=cell.kind == "search")
        except Refused as error:
            raise Refused(f"{cell.name}: {error}") from None
    return found


def estimate(study: Study) -> str:
    """What the pre-training of a study costs, in words; its fine-tuning is counted in runs."""
    found = [*costs(study).values()]
    if not found:
        return f"nothing is pre-trained; {_finetuned(study)}."
    memory = max(each.parameters for each in found) * STATE_BYTES
    counted = [each.flops for each in found if each.minutes is None]
    timed = [each.minutes for each in found if each.minutes is not None]
    parts = [*([_counted(counted)] if counted else []), *([_timed(timed)] if timed else [])]
    return (
        f"{'; '.join(parts)}; at least {memory / 1e9:,.2g} GB of memory for weights, gradients and moments, "
        f"activations not counted. {_finetuned(study).capitalize()}, not counted."
    )


def _counted(flops: Sequence[int]) -> str:
    """Runs of so many steps."""
    if max(flops) > MOST_ON_CPU:
        rate, unit, where = RATE, 3600, f"H100-hours at {ASSUMED_MFU:.0%} of its peak"
    else:
        rate, unit, where = CPU_RATE, 60, f"minutes at {CPU_RATE / 1e9:g} GFLOP/s, about that of two CPU cores"
    return (
        f"{_runs(len(flops))} of pre-training, {sum(flops) / 1e15:,.3g} PFLOP: about "
        f"{number(sum(flops) / rate / unit)} {where}, the longest run {number(max(flops) / rate / unit)}"
    )


def _timed(minutes: Sequence[float]) -> str:
    """Runs with a budget of time."""
    return f"{_runs(len(minutes))} of pre-training by the clock, {sum(minutes):g} minutes, the longest {max(minutes):g}"


def refuse_without_device(study: Study, *, force: bool = False) -> None:
    """What would take days on a CPU is not begun there, nor a search that its budget of time would end.

    Args:
        study: To be run.
        force: Begin it all the same.

    Raises:
        Refused: A run is long, and torch sees no CUDA device.
    """
    if force or torch.cuda.is_available():
        return
    for each in costs(study).values():
        if each.minutes is None:
            long = each.flops > MOST_ON_CPU
            why = estimate(study)
        else:
            searching = each.flops / CPU_RATE / 60
            long = searching > each.minutes
            why = f"the search alone would take about {number(searching)} of a run's {each.minutes:g} minutes on a CPU."
        if long:
            raise Refused(
                f"this needs a GPU, and torch sees none: {why} Choose --scale small, or begin it all the same "
                "with --force."
            )


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _finetuned(study: Study) -> str:
    count = sum(cell.kind == "finetune" for cell in study.cells())
    return f"{_runs(count)} of fine-tuning"
