"""Time per step, taken without disturbing it (Sec. 4.1, training time measuring protocol)."""

from __future__ import annotations

import time

import torch


class Clock:
    """Times whole optimizer steps; what happens between them (data loading, logging) is not counted.

    On a GPU device events are recorded and read only when asked for, so that no step waits for the
    host; elsewhere the host's monotonic clock is used.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: list[float] = []
        self._began = 0.0

    def __enter__(self) -> Clock:
        if self._cuda:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            self._events.append(pair)
        else:
            self._began = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._cuda:
            self._events[-1][1].record()
        else:
            self._seconds.append(time.perf_counter() - self._began)

    def read(self) -> list[float]:
        """Seconds of each step since the last reading. Waits for the device."""
        if self._cuda and self._events:
            self._events[-1][1].synchronize()
            self._seconds = [begin.elapsed_time(end) / 1e3 for begin, end in self._events]
            self._events.clear()
        seconds, self._seconds = self._seconds, []
        return seconds
