"""One process at a time works on a run folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..anatomy import Refused
from ..ticket.files import disk_errors, remove_leftovers

try:
    import fcntl
except ImportError:  # not a system of that kind: nothing is locked
    fcntl = None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a run folder, which is made if needed, and clear away what a killed process left half-written in it.

    The lock is on the folder itself, so it leaves no file behind, and goes with the process, however it ends. Where
    the file system has no locks, nothing is locked.

    Raises:
        Refused: Another process holds it, or the folder cannot be made.
    """
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        folder = os.open(path, os.O_RDONLY)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise Refused(f"another process is at work on {path}; wait for it, or end it.") from None
        remove_leftovers(path)
        yield
    finally:
        os.close(folder)
