"""What a command shows while it runs: bars or lines for a person, JSON lines for a program, or nothing."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn

from ..config.finetune import LogMode

if TYPE_CHECKING:
    from ..report.sheet import Sheet

WIDE = 120
"""Columns of what is printed where there is no terminal."""


class Display:
    """One for the process; a command sets its mode when it begins.

    Attributes:
        console: Where everything for a person is printed.
    """

    def __init__(self) -> None:
        told = sys.stdout.isatty() or "COLUMNS" in os.environ  # else rich would break tables at 80
        self.console = Console(highlight=False, width=None if told else WIDE)
        self._mode: LogMode = "auto"
        self._muted = False
        self._progress: Progress | None = None

    @property
    def mode(self) -> LogMode:
        """Never `auto`, which is bars on a terminal and plain elsewhere."""
        return ("bars" if sys.stdout.isatty() else "plain") if self._mode == "auto" else self._mode

    @mode.setter
    def mode(self, mode: LogMode) -> None:
        self._mode = mode
        logging.getLogger("earlybert").setLevel(logging.ERROR if mode == "quiet" else logging.NOTSET)

    def say(self, sentence: str) -> None:
        """Print a sentence, unbroken, so that commands in it can be copied."""
        if self.mode == "json":
            self.emit("note", text=sentence)
        else:
            self.show(sentence, soft_wrap=True, markup=False)

    def table(self, sheet: Sheet) -> None:
        """Print a table; its cells are a JSON line of their own."""
        if self.mode == "json":
            self.emit("table", title=sheet.title, columns=sheet.columns, rows=sheet.rows, notes=sheet.notes)
        else:
            self.show(sheet.rich())

    def show(self, what: RenderableType, **options: Any) -> None:
        """Print something for a person alone; the JSON lines carry its numbers elsewhere."""
        if self.mode in ("bars", "plain") and not self._muted:
            self.console.print(what, **options)

    def emit(self, event: str, **values: Any) -> None:
        """One JSON object on a line of standard output, in JSON mode; what is no finite number is null."""
        if self.mode == "json" and not self._muted:
            print(json.dumps(_plain({"event": event, **values}), allow_nan=False), flush=True)

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Nothing is said inside: a run of a grid, whose bar alone is shown."""
        before, self._muted = self._muted, True
        try:
            yield
        finally:
            self._muted = before

    @contextmanager
    def bars(self, *columns: ProgressColumn) -> Iterator[Progress | None]:
        """A place for bars; None where none are shown. Inside another one it is that one, also when muted."""
        if self.mode != "bars" or (self._muted and self._progress is None):
            yield None
        elif self._progress is not None:
            yield self._progress
        else:
            with Progress(*columns, console=self.console) as self._progress:
                try:
                    yield self._progress
                finally:
                    self._progress = None

    @property
    def talks(self) -> bool:
        """Whether what is said now reaches anybody."""
        return self.mode != "quiet" and not self._muted


display = Display()
say = display.say


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
