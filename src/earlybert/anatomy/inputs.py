"""Small random batches: what a family's models take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = Callable[[Any, int, int, int], dict[str, Tensor]]
"""From a config, rows, length and the padding of the last row, in tokens: a batch on the CPU."""


def text(config: Any, rows: int, length: int, padding: int = 0) -> dict[str, Tensor]:
    """Token ids and their mask, int64 `[rows, length]`; the last row ends in padding."""
    # Its own generator: the caller's random state is not touched.
    ids = torch.randint(5, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    attention = torch.ones_like(ids)
    if padding:
        attention[-1, -padding:] = 0
        ids[-1, -padding:] = config.pad_token_id if 0 <= config.pad_token_id < config.vocab_size else 0
    return {"input_ids": ids, "attention_mask": attention}


def image(config: Any, rows: int, length: int, padding: int = 0) -> dict[str, Tensor]:
    """Pixels, fp32 `[rows, channels, height, width]`; the config says how many tokens they make."""
    size = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(rows, config.num_channels, *size, generator=generator)}
