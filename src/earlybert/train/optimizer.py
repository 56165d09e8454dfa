"""AdamW with the coefficients in a group of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..ticket import Gates


def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    gates: Gates | None = None,
    gate_lr: float | None = None,
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of a model (betas 0.9 and 0.999, eps 1e-8).

    Args:
        model: Its biases and LayerNorm weights (one-dimensional parameters) are never decayed.
        lr: Base learning rate, kept in each group as `base_lr`; the loop multiplies the schedule in.
        weight_decay: Decoupled decay of the matrices. The reference code uses 0.
        gates: Coefficients to train along, without decay, in the group named `"coefficients"`.
        gate_lr: Their learning rate; the model's when not given.
    """
    groups = groups_of(model, lr=lr, weight_decay=weight_decay, gates=gates, gate_lr=gate_lr)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, eps=1e-8, fused=devices <= {"cpu", "cuda"})


def groups_of(
    model: nn.Module, *, lr: float, weight_decay: float, gates: Gates | None, gate_lr: float | None
) -> list[dict[str, Any]]:
    """Parameter groups: matrices, with decay; vectors, without; coefficients. Each keeps its `base_lr`."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"name": "matrices", "params": [p for p in trainable if p.dim() > 1], "lr": lr, "weight_decay": weight_decay},
        {"name": "vectors", "params": [p for p in trainable if p.dim() <= 1], "lr": lr, "weight_decay": 0.0},
    ]
    if gates is not None:
        rate = lr if gate_lr is None else gate_lr
        groups.append({"name": "coefficients", "params": gates.parameters(), "lr": rate, "weight_decay": 0.0})
    return [{**group, "base_lr": group["lr"]} for group in groups if group["params"]]


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
