"""bf16 where the hardware computes in it, fp32 otherwise."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from ..anatomy import Refused

Precision = Literal["auto", "bf16", "no"]

log = logging.getLogger("earlybert")


def resolve(precision: Precision, device: torch.device) -> Literal["bf16", "no"]:
    """What `auto` means on this device; a line is logged where bf16 is asked for and torch has to emulate it.

    Raises:
        Refused: The name is not one of auto, bf16, no.
    """
    if precision not in ("auto", "bf16", "no"):
        raise Refused(f"precision must be auto, bf16 or no (fp32), got {precision!r}.")
    if precision == "no":
        return "no"
    if _computes_bf16(device):
        return "bf16"
    if precision == "auto":
        return "no"
    log.warning(
        "this %s has no bf16 instructions, and torch emulates them: on a CPU with AVX2 matrix products are a "
        "hundred times slower than in fp32, which auto would take.",
        "CPU" if device.type == "cpu" else "GPU",
    )
    return "bf16"


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
