"""bf16 where the hardware computes in it, fp32 otherwise."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from ..anatomy import Refused

Precision = Literal["auto", "bf16", "no"]


def resolve(precision: Precision, device: torch.device) -> Literal["bf16", "no"]:
    """What `auto` means on this device.

    Raises:
        Refused: The name is not one of auto, bf16, no.
    """
    if precision not in ("auto", "bf16", "no"):
        raise Refused(f"precision must be auto, bf16 or no (fp32), got {precision!r}.")
    if precision == "auto":
        return "bf16" if _computes_bf16(device) else "no"
    return precision


def autocast(precision: Literal["bf16", "no"], device: torch.device) -> AbstractContextManager[Any]:
    """The forward pass under `precision`; parameters stay fp32."""
    if precision == "no":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities:
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    # Before torch 2.10 there is no public query.
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
