"""Stop between two steps when the person, or the system, asks."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM: only this process was asked to stop, while Ctrl-C reaches all that a terminal has started."""


class Interrupt:
    """Catches SIGINT and SIGTERM for a while; a second one stops at once.

    Attributes:
        asked: Whether a signal has come.
        terminated: Whether it was SIGTERM.
    """

    def __init__(self) -> None:
        self.asked = self.terminated = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if callable(before := self._before[signal.Signals(number)]):
                before(number, frame)  # which raises, and remembers
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.asked, self.terminated = True, number == signal.SIGTERM
