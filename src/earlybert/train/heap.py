"""Freed memory: it stays with the process while a run goes on, and goes back to the system between runs.

glibc gives a freed block of more than 32 MB, and the free end of its heap, back to the system, and every page that
comes anew is filled with zeros first. The steps of a run on a CPU free and ask for the same blocks all the time.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's `malloc.h`."""
LARGEST, KEPT = 2**30, 2**31 - 1
"""Bytes of a block that is still taken from the heap, and of the heap's free end that stay."""


def keep_freed() -> bool:
    """Have this process keep what it frees, as far as its C library and the person let it.

    Returns:
        Whether it does. Where `MALLOC_` variables say how memory is to be had, and where the library is not glibc,
        nothing is changed.
    """
    mallopt = None if any(name.startswith("MALLOC_") for name in os.environ) else _glibc("mallopt")
    if mallopt is None:
        return False
    return all(mallopt(what, size) for what, size in ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, KEPT)))


def give_back() -> None:
    """Drop what nobody refers to any more, and return free memory to the system, also from within the heap."""
    gc.collect()
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc; None on another C library."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
