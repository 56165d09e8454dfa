"""Phases of a pre-training run, and how their batches are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import BertConfig, BertModel

from ...anatomy import Refused, of
from ...config.pretrain import Pretrain
from ...ticket import Ticket
from ...train.schedule import Phase, shortened, split
from ..drawing import stand_in


@dataclass(frozen=True)
class Leg:
    """One phase, and its micro-batches."""

    number: int
    """0 for the first."""
    phase: Phase
    rows: int
    """Rows of a micro-batch."""
    accumulate: int
    """Micro-batches of an optimizer step on each process."""
    share: float
    """Of the time, where a run has a budget of time."""


@dataclass(frozen=True)
class Plan:
    """What a run takes, in order."""

    dense: tuple[Leg, ...]
    """Of the dense run, whose schedule the search follows."""
    train: tuple[Leg, ...]
    """Of the run's own method."""
    search: int
    """Optimizer steps of the search; 0 without one."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the training, all phases together."""
        return sum(leg.phase.steps for leg in self.train)


def plan(config: Pretrain, world: int = 1) -> Plan:
    """Phases, batches and search of a run.

    Args:
        config: The settings.
        world: Processes.

    Raises:
        Refused: A batch cannot be divided, a phase is too short for its warm-up, or the search is longer than phase 1.
    """
    whole = _phases(config)
    ticket = config.method != "dense"
    own = shortened(whole, config.share) if ticket and config.minutes is None else whole
    search = config.search_steps if config.method == "ticket" else 0
    if config.minutes is None:
        for number, phase in enumerate(own, 1):
            _refuse_short(phase, number)
        if search > whole[0].steps:
            raise Refused(
                f"the search of {search} steps is longer than the {whole[0].steps} steps of phase 1; lower "
                "search_steps or raise steps."
            )
    return Plan(_legs(config, whole, world), _legs(config, own, world), search)


def _phases(config: Pretrain) -> tuple[Phase, ...]:
    """The dense run's."""
    first = Phase(config.steps, config.length, config.batch, config.lr, config.warmup)
    second = Phase(0, config.second_length, config.second_batch, config.second_lr, config.second_warmup)
    if config.second == 0:
        return (first,)
    if isinstance(config.second, int):
        return replace(first, steps=config.steps - config.second), replace(second, steps=config.second)
    return split(config.steps, (first, second), 1 - config.second)


def _legs(config: Pretrain, phases: Sequence[Phase], world: int) -> tuple[Leg, ...]:
    rows = (config.rows, config.second_rows)
    last = float(config.second) if len(phases) > 1 else 0.0
    shares = (1 - last, last)
    return tuple(
        Leg(number, phase, size, _accumulate(phase.batch, size, world, number), share)
        for number, (phase, size, share) in enumerate(zip(phases, rows, shares, strict=False))
    )


def _accumulate(batch: int, rows: int, world: int, number: int) -> int:
    if batch % (rows * world):
        processes = f" on {world} processes" if world > 1 else ""
        raise Refused(
            f"the batch of {batch:,} rows in phase {number + 1} cannot be made of micro-batches of {rows} "
            f"rows{processes}; choose numbers that divide it."
        )
    return batch // (rows * world)


def _refuse_short(phase: Phase, number: int) -> None:
    if phase.steps < 1 or (phase.warmup > 0 and phase.warmup * phase.steps < 1):
        raise Refused(
            f"phase {number} has only {phase.steps} steps, too few for a warm-up over {phase.warmup:.2%} of them; "
            "train longer, or leave the warm-up or the phase out."
        )


def bert_config(config: Pretrain, vocabulary: int, pad: int = 0) -> BertConfig:
    """The model's configuration.

    Args:
        config: The settings.
        vocabulary: Tokens of the tokenizer; rounded up to a multiple of 64, which matrix units want.
        pad: Id of the padding token.
    """
    return BertConfig(
        vocab_size=-(-vocabulary // 64) * 64,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.attention_heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=config.positions,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        pad_token_id=pad,
    )


def check_drawing(config: Pretrain, model: BertConfig) -> Ticket:
    """Draw from made-up scores, so that an impossible budget is refused before the search.

    Returns:
        A ticket that costs about what the run's own will.

    Raises:
        Refused: As `draw`.
    """
    with torch.device("meta"):
        anatomy = of(BertModel(model))
    return stand_in(config, anatomy)
