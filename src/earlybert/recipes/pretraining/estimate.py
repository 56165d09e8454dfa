"""What a run of pre-training will compute, from its settings alone, and what that takes on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

from ...config.pretrain import Pretrain
from ...cost import PEAK, MaskedCost, masked
from ...data.masking import most
from ...ticket.surgery import cut
from .plan import Leg, bert_config, check_drawing, plan

SEARCH = "search"
"""Name of the first part."""
DEVICE = "NVIDIA H100 80GB HBM3"
ASSUMED_MFU = 0.4
"""Share of a device's peak that hours are told for, before anything was measured."""
RATE = PEAK[DEVICE] * ASSUMED_MFU
"""FLOP/s."""
STATE_BYTES = 16
"""Of a parameter: weight, gradient and two moments, fp32."""


@dataclass(frozen=True)
class Part:
    """The search, or a phase."""

    name: str
    steps: int
    rows: int
    """Of an optimizer step, over all processes."""
    length: int
    """Tokens of a row."""
    flops: int
    """Of all its steps, over all processes."""

    @property
    def tokens(self) -> int:
        """Of all its steps, if every row is full."""
        return self.steps * self.rows * self.length


@dataclass(frozen=True)
class Work:
    """Of a whole run."""

    parts: tuple[Part, ...]
    """In order: the search, if there is one, and the phases."""
    before: int
    """Parameters of the dense model."""
    after: int
    """Of what is trained."""

    @property
    def flops(self) -> int:
        """Of the whole run."""
        return sum(part.flops for part in self.parts)


@lru_cache(64)
def work(config: Pretrain, vocabulary: int) -> Work:
    """Steps, tokens and FLOPs of a run whose rows are all full; nothing is computed.

    Of a run with a budget of time the steps of the training are not known: its phases have none.

    Args:
        config: The settings.
        vocabulary: Tokens of the corpus's tokenizer.

    Raises:
        Refused: The settings do not fit each other.
    """
    lengths, shape = plan(config), bert_config(config, vocabulary)
    model = _hollow(config, shape)
    dense, before = masked(model, 0), _parameters(model)
    parts = []
    if lengths.search:
        parts += [_part(SEARCH, lengths.search, lengths.dense[0], dense)]
    if config.method != "dense":
        cut(model, check_drawing(config, shape))
    own = masked(model, 0)
    for leg in lengths.train:
        parts += [_part(f"phase {leg.number + 1}", leg.phase.steps if config.minutes is None else 0, leg, own)]
    return Work(tuple(parts), before, _parameters(model))


def _hollow(config: Pretrain, shape: BertConfig) -> nn.Module:
    """The dense model; its shapes count, its values do not, and no memory is touched before it is written."""
    with torch.device("meta"):
        kind: Any = BertForPreTraining if config.pairs else BertForMaskedLM
        model = kind(shape)
    model.to_empty(device="cpu")
    model.tie_weights()
    for buffer in model.buffers():
        buffer.zero_()
    return model


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _part(name: str, steps: int, leg: Leg, cost: MaskedCost) -> Part:
    rows, length = leg.phase.batch, leg.phase.length
    step = replace(cost, predictions=rows * most(length)).step([(rows, length)])
    return Part(name, steps, rows, length, steps * step)


def hours(flops: float) -> str:
    """Of one H100, in a few words."""
    return f"{number(flops / RATE / 3600)} hours of one H100 at {ASSUMED_MFU:.0%} of its peak"


def number(value: float) -> str:
    """Short, with two digits at least."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
