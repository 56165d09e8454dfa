"""A model and the random state as they were, whatever was done with them in between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..anatomy.modes import modes_kept


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model and the random state back, whatever happens."""
    values = [*model.parameters(), *model.buffers()]
    saved = [value.detach().clone() for value in values]
    try:
        with aside(model):
            yield
    finally:
        with torch.no_grad():
            for value, before in zip(values, saved, strict=True):
                value.copy_(before)


@contextmanager
def aside(model: nn.Module) -> Iterator[None]:
    """Put everything back but the values of weights and buffers: gradients, modes, configuration, the random state."""
    grads = [parameter.grad for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    cuda = {parameter.device.index or 0 for parameter in model.parameters() if parameter.device.type == "cuda"}
    config: Any = model.config
    problem = getattr(config, "problem_type", None)
    drawn, drawn_by_numpy = random.getstate(), np.random.get_state()  # a collator may draw from them
    try:
        with modes_kept(model), torch.random.fork_rng(devices=sorted(cuda)):
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter.grad = grad
        if getattr(config, "problem_type", None) != problem:  # transformers notes it in the first loss
            config.problem_type = problem
