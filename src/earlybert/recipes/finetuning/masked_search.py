"""Search on masked-language modelling of the task's own text (App. B, Table 8), for a ticket that is fine-tuned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ...anatomy import Refused
from ...cost import MaskedCost
from ...cost import masked as masked_cost
from ...data.corpus import Words, words_of
from ...data.masking import SHARE, choose, hide
from ...data.noise import bits
from ...tasks.batches import Batch
from ...tasks.head import load_masked
from .bench import SHARED_ORDER, Bench
from .stages import Objective

CHOICE, HIDE = 0, 1
"""What a random draw is for."""


def masked_model(bench: Bench) -> nn.Module:
    """The model with its own masked-language head, on the CPU.

    Raises:
        Refused: The weights hold no such head, or the tokenizer no mask token.
    """
    if bench.tokenizer.mask_token_id is None:
        raise Refused(f"the tokenizer of model {bench.config.model!r} has no mask token; search on the task instead.")
    return load_masked(bench.config.model, offline=bench.config.offline)


def masked_objective(bench: Bench) -> Objective:
    """The model with its own masked-language head, and the task's rows, masked anew at every step.

    The head is thrown away with the searched weights; the ticket is then trained from theta_0 of the task.

    Raises:
        Refused: As `masked_model`.
    """
    model = masked_model(bench).to(bench.device)
    words = words_of(bench.tokenizer)
    special = np.array(bench.tokenizer.all_special_ids)

    def batches(first: int) -> Iterator[list[Batch]]:
        steps = bench.stream(SHARED_ORDER).starting_at(first)
        for step, micro_batches in enumerate(steps, start=first):
            yield [
                masked(_text(bench, batch), words, special, bench.config.seed, step, number)
                for number, batch in enumerate(micro_batches)
            ]

    return Objective(model, batches, TextCost(masked_cost(model, 0)))


@dataclass(frozen=True)
class TextCost:
    """FLOPs of a step whose vocabulary projection is computed on the masked places of rows of any length."""

    cost: MaskedCost

    def step(self, shapes: Sequence[tuple[int, int]]) -> int:
        """As `Cost.step`."""
        tokens = sum(rows * length for rows, length in shapes)
        return replace(self.cost, predictions=round(SHARE * tokens)).step(shapes)


def masked(batch: Batch, words: Words, special: Any, *where: int) -> Batch:
    """Hide 15 % of a padded batch's tokens, 80 / 10 / 10 (Devlin et al. 2018).

    Args:
        batch: `input_ids`, `attention_mask` and what else the model takes, int64 `[rows, length]`.
        words: Of the tokenizer.
        special: Ids that are never hidden.
        *where: Coordinates of the random draws: the same give the same masks.

    Returns:
        The batch with masks in, and `masked_positions`, `masked_labels` int64 `[predictions]`.
    """
    ids, present = batch["input_ids"].numpy(), batch["attention_mask"].numpy().astype(bool)
    places = np.arange(ids.size).reshape(ids.shape)
    keys = bits(*where, CHOICE, places)
    chosen = choose(ids, present & ~np.isin(ids, special), present.sum(1), words, keys, whole=False)
    seen, positions, labels = hide(ids, chosen, words, *where, HIDE, places)
    hidden = {"input_ids": seen, "masked_positions": positions, "masked_labels": labels}
    return {**batch, **{name: torch.from_numpy(value) for name, value in hidden.items()}}


def _text(bench: Bench, batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name not in bench.train.targets}
