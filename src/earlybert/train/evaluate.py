"""Predictions of a model on every row."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..anatomy.modes import evaluating
from ..tasks.batches import Rows, in_order
from .precision import autocast
from .step import to_device


def predict(
    model: nn.Module, rows: Rows, *, batch_size: int = 64, precision: Literal["bf16", "no"] = "no"
) -> NDArray[Any]:
    """What `rows.read` makes of the model's outputs, `[rows, ...]`, in the order of the rows.

    Every module is left in the mode it was in.
    """
    device = next(model.parameters()).device
    found: list[NDArray[Any]] = []
    order: list[NDArray[np.int64]] = []
    with evaluating(model), torch.no_grad():
        for numbers, batch in in_order(rows, batch_size):
            for name in rows.targets:
                batch.pop(name)
            with autocast(precision, device):
                output = model(**to_device(batch, device))
            found.append(rows.read(output, numbers))
            order.append(numbers)
    predicted = np.concatenate(found)
    in_row_order = np.empty_like(predicted)
    in_row_order[np.concatenate(order)] = predicted
    return in_row_order
