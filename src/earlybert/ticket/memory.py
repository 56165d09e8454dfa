"""Memory that ran out, however it is told."""

from __future__ import annotations

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a device, or the machine itself, has no memory left."""
    # The allocator of the CPU has no exception of its own.
    told = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)
