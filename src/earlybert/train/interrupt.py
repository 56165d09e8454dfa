"""Stop between two steps when the person, or the system, asks."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM: only this process was asked to stop, while Ctrl-C reaches all that a terminal has started."""


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C would: with a sentence, and files cleared away.

    Raises:
        Terminated: It has come.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.asked, self.terminated = True, number == signal.SIGTERM
