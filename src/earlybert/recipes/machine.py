"""Where a run computes, and with whom."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator

from ..anatomy import Refused
from ..train.heap import keep_freed
from ..train.precision import resolve
from ..train.ranks import Ranks, group_left_at_exit
from .display import display


@dataclass(frozen=True)
class Machine:
    """Where a run computes."""

    device: torch.device
    precision: Literal["bf16", "no"]
    ranks: Ranks

    @classmethod
    def found(cls, config: Any) -> Machine:
        """This process's device, and its place in the job that a launcher began. Only the first one has a voice.

        Args:
            config: Settings of a run.

        Raises:
            Refused: The device that was asked for is not there.
        """
        with group_left_at_exit():
            accelerator = Accelerator(cpu=config.device == "cpu")
        if config.device == "cuda" and accelerator.device.type != "cuda":
            raise Refused("--device cuda was asked for, but torch sees no CUDA device.")
        device = accelerator.device
        if device.type == "cpu":
            keep_freed()
        ranks = Ranks.of_job()
        if not ranks.main:
            display.mode = "quiet"
        return cls(device, resolve(config.precision, device), ranks)


def refuse_launcher(what: str) -> None:
    """What several processes would do one beside the other.

    Args:
        what: Names it in the refusal.

    Raises:
        Refused: A launcher has started several.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise Refused(f"{what} runs on one process; start it without a launcher.")


def launched_for_more(ranks: Ranks) -> list[str]:
    """A sentence, where `accelerate launch` was asked for several processes and began this one without a place there.

    Its simple launcher gives the address of a job, but no rank and no number of processes.
    """
    simple = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if ranks.world > 1 or not simple or "WORLD_SIZE" in os.environ:
        return []
    return [
        "accelerate was asked for several processes and began one, as it does for a CPU; launch with its --multi_gpu, "
        "also without a GPU, or with torchrun."
    ]
