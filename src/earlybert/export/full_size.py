"""A cut model at full size again, with zeros where something was cut: for tools that know only stock checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from ..anatomy import Refused, of
from ..anatomy.probe import two_rows
from ..ticket.exact import exact_copy, full_precision
from ..ticket.portable import stock_class
from ..ticket.store import quiet, ticket_of
from ..ticket.surgery import slices
from .folder import new_folder

TOLERANCE = 1e-5
"""Largest max|expanded - cut| / max|cut| in fp32 that counts as equal."""


def expand(model: Any) -> Any:
    """A whole model of the same class that computes what the cut one does; nothing of the saving is left.

    Args:
        model: A cut model.

    Raises:
        Refused: It is not cut.
    """
    ticket = ticket_of(model)
    if ticket is None:
        raise Refused(f"this {type(model).__name__} is not cut, so there is nothing to expand.")
    config = copy.deepcopy(model.config)
    object.__setattr__(config, "__class__", stock_class(type(config)))
    del config.earlybert
    vars(config).pop("auto_map", None)
    whole = type(model)._from_config(config, attn_implementation=config._attn_implementation)
    whole = whole.to(device=model.device, dtype=model.dtype).train(model.training)
    smaller = slices(of(whole), ticket)
    state = whole.state_dict()
    for name, value in model.state_dict().items():
        if name in smaller:
            dim, index = smaller[name]
            value = torch.zeros_like(state[name]).index_copy_(dim, index.to(value.device), value)
        state[name] = value
    whole.load_state_dict(state)
    if whole.can_generate():
        whole.generation_config = copy.deepcopy(model.generation_config)
    return whole


def expanded(model: Any, folder: str | Path, *, tokenizer: Any = None) -> Path:
    """Write a stock checkpoint of full size that plain `from_pretrained` loads.

    Args:
        model: A cut model.
        folder: To be made.
        tokenizer: Saved along.

    Raises:
        Refused: The model is not cut, the folder is not empty, or the two models differ by more than 1e-5.
    """
    whole = expand(model)
    anatomy = of(whole)
    with torch.no_grad(), full_precision():
        pair = [exact_copy(each).cpu() for each in (model, whole)]
        cut, full = (two_rows(each, anatomy) for each in pair)
    for name, expected in cut.items():
        if isinstance(expected, torch.Tensor) and expected.is_floating_point():
            error = float((full[name] - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
            if not error <= TOLERANCE:
                raise Refused(
                    f"the expanded model differs from the cut one by {error:.1e} in {name}; please report it."
                )
    with new_folder(folder, tokenizer=tokenizer) as fresh, quiet():
        whole.save_pretrained(fresh)
    return Path(folder)
