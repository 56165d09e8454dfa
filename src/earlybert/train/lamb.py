"""LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning", Algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import Refused
from ..ticket import Gates
from .optimizer import groups_of
from .sharded import norms, part

foreach: Any = torch
"""Its functions on lists of tensors, which have no public types."""


class Lamb(torch.optim.Optimizer):
    """Adam's direction, as long as the learning rate times the norm of the weights.

        m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  r = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
        w = w - lr * ||w|| / ||r + decay w|| * (r + decay w)

    phi of the paper is the identity; where either norm is 0, the ratio is 1. Clipping is left to the step.
    Nothing waits for the device: learning rates and step counts are tensors on it, and a step can be captured in a
    CUDA graph. Before a replay, `push_rates` brings new learning rates to it. Each process updates its part of sharded
    parameters, by the norms of the whole.

    Args:
        params: Parameters or groups. A group with `adapt=False` has no trust ratio: plain AdamW.
        lr: Learning rate.
        betas: b1 and b2.
        eps: Added to the root.
        weight_decay: Decoupled, inside the trust ratio.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        self._rates: list[Tensor] = []
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update once. Parameters without a gradient are left alone; those of a group share a step count."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            self.push_rates()
        for group, rate in zip(self.param_groups, self._rates, strict=True):
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(group, rate, parameters)
        return loss

    def push_rates(self) -> None:
        """Bring the groups' learning rates to the device."""
        if len(self._rates) != len(self.param_groups):
            self._rates = [
                torch.zeros((), dtype=torch.float32, device=group["params"][0].device) for group in self.param_groups
            ]
        for group, rate in zip(self.param_groups, self._rates, strict=True):
            rate.fill_(group["lr"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Moments and step counts as saved; one count for each group again.

        Raises:
            Refused: The counts of a group differ.
        """
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            states = [self.state[parameter] for parameter in group["params"] if parameter in self.state]
            if len({float(state["step"]) for state in states}) > 1:
                raise Refused("the saved state is not of LAMB: parameters of a group have different step counts.")
            for state in states:
                # Moments follow their parameters' device by themselves, counts do not.
                state["step"] = states[0]["step"] = states[0]["step"].to(state["exp_avg"].device)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rates = []

    def _update(self, group: dict[str, Any], rate: Tensor, params: list[nn.Parameter]) -> None:
        self._prepare(group)
        beta1, beta2 = group["betas"]
        states = [self.state[parameter] for parameter in params]
        count = states[0]["step"]
        count += 1
        parameters = [part(parameter) for parameter in params]
        grads = [part(parameter.grad) for parameter in params if parameter.grad is not None]
        first, second = ([part(state[name]) for state in states] for name in ("exp_avg", "exp_avg_sq"))
        foreach._foreach_lerp_(first, grads, 1 - beta1)
        foreach._foreach_mul_(second, beta2)
        foreach._foreach_addcmul_(second, grads, grads, 1 - beta2)
        # In double: in fp32, 1 - 0.999 ** t is off by 1e-4 of itself at the first steps.
        time = count.double()
        scale1, scale2 = (1 - beta1**time).float(), (1 - beta2**time).float()
        root = foreach._foreach_div(second, scale2)
        foreach._foreach_sqrt_(root)
        foreach._foreach_add_(root, group["eps"])
        update = foreach._foreach_div(first, scale1)
        foreach._foreach_div_(update, root)
        if group["weight_decay"]:
            foreach._foreach_add_(update, parameters, alpha=group["weight_decay"])
        if group["adapt"]:
            weights, updates = norms([*parameters, *update], params).chunk(2)
            ratios = torch.where((weights > 0) & (updates > 0), weights / updates, torch.ones_like(weights))
            foreach._foreach_mul_(update, list((ratios * -rate).unbind()))
        else:
            foreach._foreach_mul_(update, -rate)
        foreach._foreach_add_(parameters, update)

    def _prepare(self, group: dict[str, Any]) -> None:
        """State for parameters that have none yet."""
        known = (self.state[p]["step"] for p in group["params"] if p in self.state)
        count = next(known, None)
        for parameter in group["params"]:
            if parameter not in self.state and parameter.grad is not None:
                if count is None:
                    count = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": count, **moments}


def lamb(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.01,
    gates: Gates | None = None,
    gate_lr: float | None = None,
) -> Lamb:
    """LAMB over the trainable parameters of a model, as BERT is trained with it.

    Args:
        model: Its biases and LayerNorm weights (one-dimensional parameters) have neither decay nor trust ratio.
        lr: Base learning rate, kept in each group as `base_lr`; the loop multiplies the schedule in.
        weight_decay: Of the matrices.
        gates: Coefficients to train along, without decay and trust ratio, in the group named `"coefficients"`.
        gate_lr: Their learning rate; the model's when not given.
    """
    groups = groups_of(model, lr=lr, weight_decay=weight_decay, gates=gates, gate_lr=gate_lr)
    return Lamb([{**group, "adapt": group["name"] == "matrices"} for group in groups], lr=lr)
