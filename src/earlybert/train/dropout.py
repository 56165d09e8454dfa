"""Dropout on a CPU from a few random bits a value: torch draws one value at a time there, a twentieth of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BITS = 15
"""Of a random draw that decide about one value: a probability is rounded to 1 / 2^15, and the scale is that of the
rounded one, so that the mean is exact."""
KINDS: dict[torch.dtype, torch.dtype] = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
"""Types it works on, and the integers of their size."""


def dropout(x: Tensor, p: float) -> Tensor:
    """Set each value to zero with probability `p`, and scale the others to keep the mean.

    Draws from torch's CPU generator, a quarter of a 64-bit number a value.

    Args:
        x: bf16 or fp32, of any shape, on the CPU; other types and devices go to `torch.nn.functional.dropout`.
        p: Probability of a zero.
    """
    below = round(p * 2**BITS)
    if x.device.type != "cpu" or x.dtype not in KINDS or not 0 < below < 2**BITS:
        return F.dropout(x, p)
    out = _Dropout.apply(x, below)
    assert isinstance(out, Tensor)
    return out


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, below: int) -> Tensor:
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_().view(torch.int16)[: x.numel()]
        # all ones where the draw, 0 ... 2^15 - 1, is not below; else zeros
        kept = draws.bitwise_and_(2**BITS - 1).neg_().add_(below - 1).bitwise_right_shift_(15).view(x.shape)
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - below / 2**BITS)
        return _apply(x, kept, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _apply(grads[0], ctx.saved_tensors[0], ctx.scale), None


def _apply(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    kind = KINDS[x.dtype]
    return (x.view(kind) & kept.to(kind)).view(x.dtype).mul_(scale)


class Dropouts:
    """The dropout modules of a model, which can be made to draw so; not those whose forward was replaced already."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [each for each in model.modules() if type(each) is nn.Dropout and "forward" not in vars(each)]

    @contextmanager
    def quick(self) -> Iterator[None]:
        """Inside, they are `dropout` above in training; in evaluation they do nothing, as always."""
        for module in self.modules:
            module.forward = _forward(module)
        try:
            yield
        finally:
            for module in self.modules:
                del module.forward


def _forward(module: nn.Dropout) -> Any:
    return lambda input: dropout(input, module.p) if module.training and module.p else input
