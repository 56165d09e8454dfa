"""SIGINT and SIGTERM: whatever a command was doing, it ends with one sentence and an exit code of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit codes after a signal."""


class Signals:
    """Listens to both while a command runs.

    An exception that breaks into an import comes out as whatever the library makes of it, or as a crash. So while
    modules are loaded and nothing has been written, a signal ends the process at once. From `loaded()` on it raises.

    Args:
        at_once: Whether the process is this command's alone; where it is not, nothing is listened to before `loaded()`.

    Attributes:
        came: Exit code of the signal that has come; None before.
        json: Whether a program reads JSON lines.
    """

    def __init__(self, *, at_once: bool) -> None:
        self.came: int | None = None
        self.json = False
        self._at_once = at_once
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if self._at_once:
            self._listen(self._end)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def loaded(self) -> None:
        """The modules are there, and work begins."""
        self._listen(self._raise)

    def _listen(self, handler: Callable[[int, FrameType | None], None]) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in CODES:
            before = self._before.setdefault(number, signal.getsignal(number))
            if before in (signal.default_int_handler, signal.SIG_DFL):  # else it is ignored, or somebody else's
                signal.signal(number, handler)

    def _end(self, number: int, _: FrameType | None) -> None:
        code = CODES[signal.Signals(number)]
        os.write(2, b"earlybert: stopped.\n")
        if self.json:
            os.write(1, f'{{"event": "stopped", "code": {code}, "resume": null}}\n'.encode())
        os._exit(code)

    def _raise(self, number: int, _: FrameType | None) -> None:
        from ..train.interrupt import Terminated

        self.came = CODES[signal.Signals(number)]
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
