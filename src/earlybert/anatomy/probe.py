"""Run the part of a model that a cut concerns on a small made-up batch, whatever the model takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from . import Anatomy

LENGTH = 16
"""Tokens of a row, to hold two models against one another."""
CHOICES = 2
"""Choices a row of a multiple-choice model."""


def probe(model: nn.Module, anatomy: Anatomy, rows: int, length: int, padding: int = 0) -> Any:
    """The output of `anatomy.core` for a random batch.

    Args:
        model: What `anatomy` was read from, or a cut or masked copy of it.
        anatomy: Where things are.
        rows: Rows, or pairs of rows where the model chooses between two.
        length: Tokens a row; images make as many as their config says.
        padding: Tokens of the last row that are padding.
    """
    config: Any = model.config
    with _padding_id(config):
        batch = anatomy.family.inputs(config, rows, length, padding)
        device = next(model.parameters()).device
        batch = {name: _for_head(model, value.to(device)) for name, value in batch.items()}
        return model.get_submodule(anatomy.core)(**batch, return_dict=True)


def two_rows(model: nn.Module, anatomy: Anatomy) -> Any:
    """As `probe`, for two rows of 16 tokens, or of as many as the model has positions for; the last ends in padding."""
    length = min(LENGTH, anatomy.family.longest(model.config))
    return probe(model, anatomy, 2, length, padding=length // 3)


def _for_head(model: nn.Module, x: Tensor) -> Tensor:
    """A multiple-choice model takes `[rows, choices, length]`."""
    return x[:, None].repeat(1, CHOICES, 1) if type(model).__name__.endswith("ForMultipleChoice") else x


@contextmanager
def _padding_id(config: Any) -> Iterator[None]:
    """A model that was told no padding id, or a negative one, is lent one: some heads take no batch without."""
    before = getattr(config, "pad_token_id", None)
    if before is None or before < 0:
        config.pad_token_id = 0
    try:
        yield
    finally:
        config.pad_token_id = before
