"""Freed memory that stays with the process.

glibc gives a freed block of more than 32 MB, and the free end of its heap, back to the system, and every page that
comes anew is filled with zeros first. The steps of a run on a CPU free and ask for the same blocks all the time.
"""

from __future__ import annotations

import ctypes
import os
import sys

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
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(what, size) for what, size in ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, KEPT)))
