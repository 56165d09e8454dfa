"""Standard output that may be left by its reader (`| head`): the work goes on, unseen."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Unread(io.RawIOBase):
    """A descriptor for as long as somebody reads it; what is written afterwards goes nowhere.

    Args:
        descriptor: Open for writing. It stays open when this is closed.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor, self._read = descriptor, True

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def write(self, data: Buffer, /) -> int:
        """Bytes taken; all of them once nobody reads any more."""
        try:
            if self._read:
                return os.write(self._descriptor, data)
        except BrokenPipeError:
            self._read = False
        return memoryview(data).nbytes


def outlive_reader() -> None:
    """Make standard output such a one, unless it is a terminal, which stays."""
    now = sys.stdout
    if isinstance(now, io.TextIOWrapper) and not now.isatty():
        now.flush()
        inner = io.BufferedWriter(Unread(now.fileno()))
        sys.stdout = io.TextIOWrapper(inner, now.encoding, now.errors, line_buffering=now.line_buffering)
