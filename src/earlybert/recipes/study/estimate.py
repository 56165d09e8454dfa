"""What a study will cost, before anything of it is run."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...anatomy import Refused
from ...config import Preparation
from ...config_pretrain import Pretrain
from ..pretraining.estimate import ASSUMED_MFU, RATE, SEARCH, STATE_BYTES, number, work
from .study import Study

CPU_RATE = 6e10
"""FLOP/s of small models in bf16 on two cores; measured roughly, and good for minutes or hours only."""
MOST_ON_CPU = 1e16
"""FLOPs of one run; at that rate 46 hours."""


def flops(config: Pretrain, vocabulary: int, *, search_only: bool = False) -> tuple[int, int]:
    """FLOPs of a run whose rows are all full, and parameters of its dense model; nothing is computed.

    Args:
        config: A run of so many steps.
        vocabulary: Tokens of the corpus's tokenizer.
        search_only: The run ends with its search.

    Raises:
        Refused: The settings do not fit each other; or the run has a budget of time.
    """
    if config.minutes is not None:
        raise Refused(f"a run of {config.minutes:g} minutes costs those; only one of so many steps is counted.")
    found = work(config, vocabulary)
    return sum(part.flops for part in found.parts if part.name == SEARCH or not search_only), found.before


def costs(study: Study, vocabulary: int | None = None) -> dict[str, tuple[int, int]]:
    """FLOPs of each run of pre-training, and parameters of its dense model, by the name of its cell.

    Raises:
        Refused: Settings of a run do not fit each other.
    """
    words = vocabulary or study.text.get("vocabulary", Preparation.vocabulary)
    found: dict[str, tuple[int, int]] = {}
    for cell in study.cells():
        if cell.kind == "finetune":
            continue
        try:
            found[cell.name] = flops(Pretrain(**cell.settings), words, search_only=cell.kind == "search")
        except Refused as error:
            raise Refused(f"{cell.name}: {error}") from None
    return found


def estimate(study: Study) -> str:
    """What the pre-training of a study costs, in words; its fine-tuning is counted in runs."""
    found = costs(study)
    if not found:
        return f"nothing is pre-trained; {_finetuned(study)}."
    every = [cost for cost, _ in found.values()]
    memory = max(parameters for _, parameters in found.values()) * STATE_BYTES
    if max(every) > MOST_ON_CPU:
        rate, unit, where = RATE, 3600, f"H100-hours at {ASSUMED_MFU:.0%} of its peak"
    else:
        rate, unit, where = CPU_RATE, 60, f"minutes at {CPU_RATE / 1e9:g} GFLOP/s, about that of two CPU cores"
    runs = f"{len(every)} run{'' if len(every) == 1 else 's'} of pre-training"
    return (
        f"{runs}, {sum(every) / 1e15:,.3g} PFLOP: about {number(sum(every) / rate / unit)} {where}, the longest run "
        f"{number(max(every) / rate / unit)}; at least {memory / 1e9:,.2g} GB of memory for weights, gradients and "
        f"moments, activations not counted. {_finetuned(study).capitalize()}, not counted."
    )


def refuse_without_device(study: Study, *, force: bool = False) -> None:
    """What would take days on a CPU is not begun there.

    Args:
        study: To be run.
        force: Begin it all the same.

    Raises:
        Refused: A run is long, and torch sees no CUDA device.
    """
    found: Mapping[str, tuple[int, int]] = costs(study)
    longest = max((cost for cost, _ in found.values()), default=0)
    if longest > MOST_ON_CPU and not force and not torch.cuda.is_available():
        raise Refused(
            f"this needs a GPU, and torch sees none: {estimate(study)} Choose --scale small, or begin it all the same "
            "with --force."
        )


def _finetuned(study: Study) -> str:
    count = sum(cell.kind == "finetune" for cell in study.cells())
    return f"{count} run{'' if count == 1 else 's'} of fine-tuning"
