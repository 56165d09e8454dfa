"""What a model computes, as exactly as it can: to hold a cut or exported model against another."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)

EXACT = ("sdpa", "eager")
"""Kinds of attention that take fp32 on every device; the flash kernels take half precision alone."""


def exact_copy(model: Model) -> Model:
    """A copy in fp32 and eval mode with the forward of its class, whose attention takes fp32."""
    twin = copy.deepcopy(model).float().eval()
    vars(twin).pop("forward", None)
    exact_attention(twin)
    return twin


def exact_attention(model: Any) -> None:
    """Have a model attend by SDPA, or eagerly where its class has no SDPA, unless it does one of them already."""
    if getattr(model.config, "_attn_implementation", None) not in (*EXACT, None):
        model.set_attn_implementation(EXACT[0] if getattr(model, "_supports_sdpa", False) else EXACT[1])


@contextmanager
def as_written(model: Any) -> Iterator[None]:
    """Without what would be traced along or cannot be: `accelerate`'s mixed precision, a cache, flash attention.

    The model has them again behind it.
    """
    own, config = vars(model), model.config
    # `accelerate` keeps the forward that it wraps under this name; a forward that somebody else has put there stays.
    mixed = own.pop("forward", None) if "_original_forward" in own else None
    cached, attention = getattr(config, "use_cache", None), getattr(config, "_attn_implementation", None)
    if cached:
        config.use_cache = False
    exact_attention(model)
    try:
        yield
    finally:
        if mixed is not None:
            own["forward"] = mixed
        if cached:
            config.use_cache = cached
        if getattr(config, "_attn_implementation", None) != attention:
            model.set_attn_implementation(attention)


@contextmanager
def full_precision() -> Iterator[None]:
    """fp32 products as fp32, not TF32 or bf16, and no autocast; whoever has set it otherwise finds it so behind."""
    parts: list[Any] = [getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn)]
    parts = [part for part in parts if hasattr(part, "fp32_precision")]
    # Where torch has both, the older interface raises once somebody has used this one.
    before = [part.fp32_precision for part in parts] if parts else torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        _set_precision(parts, ["ieee"] * len(parts) if parts else "highest")
        try:
            yield
        finally:
            _set_precision(parts, before)


def _set_precision(parts: list[Any], precision: list[str] | str) -> None:
    if isinstance(precision, str):
        torch.set_float32_matmul_precision(precision)
    else:
        for part, each in zip(parts, precision, strict=True):
            part.fp32_precision = each
