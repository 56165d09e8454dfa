"""The coefficients after every optimizer step, streamed to disk.

`history.bin` is one line of JSON, padded with blanks, then raw little-endian fp32 rows, one a step:
all heads, then all neurons, layer by layer. A row that was not finished is not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..anatomy import Refused
from .distance import Distance, mask_distance
from .draw import Mask, Scope, keep_mask
from .files import disk_errors
from .gates import Gates
from .tensors import UNUSABLE, typed

FORMAT = "earlybert-history-1"
HEADER_BYTES = 256

Kind = Literal["heads", "neurons"]


class HistoryWriter:
    """Append the gates' coefficients to a file; memory stays bounded however long the search.

    Args:
        path: The file. It is started anew, or cut back to `rows` and continued.
        gates: Whose coefficients.
        rows: Rows that are already there and stay (a resumed search).
        buffer: Rows held on the device before they are written, so that no step waits for the disk.

    Raises:
        Refused: A search is resumed whose file is missing, short or of another model.
    """

    def __init__(self, path: str | os.PathLike[str], gates: Gates, *, rows: int = 0, buffer: int = 64) -> None:
        self.path = Path(path)
        self._gates = gates
        self._limit = buffer
        self._waiting: list[Tensor] = []
        layers, heads = gates.heads.shape
        about = {"format": FORMAT, "layers": layers, "heads": heads, "neurons": gates.neurons.shape[1]}
        header = json.dumps(about).encode().ljust(HEADER_BYTES - 1) + b"\n"
        there = History(self.path) if rows else None
        if there is not None and (len(there) < rows or there.about != about):
            raise Refused(f"{self.path} does not hold the {rows} steps of the search to resume; start a new run.")
        with disk_errors(self.path):
            if there is not None:
                self._file = open(self.path, "r+b")
                self._file.truncate(HEADER_BYTES + rows * there.row_bytes)
                self._file.seek(0, os.SEEK_END)
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "wb")
                self._file.write(header)

    def record(self) -> None:
        """Take one row, after an optimizer step."""
        self._waiting.append(self._gates.row().clone())
        if len(self._waiting) >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        with disk_errors(self.path):
            if self._waiting:
                rows, self._waiting = self._waiting, []
                self._file.write(torch.stack(rows).cpu().numpy().astype("<f4").tobytes())
            self._file.flush()

    def close(self) -> None:
        """Write what waits and close the file."""
        if not self._file.closed:
            try:
                self.flush()
            finally:
                with disk_errors(self.path):
                    self._file.close()


class History:
    """Read a `history.bin`, without loading it.

    Raises:
        Refused: The file is missing or is not one.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self.about = json.loads(file.read(HEADER_BYTES))
            typed(self.about, layers=int, heads=int, neurons=int)
            self.layers, self._heads, self._neurons = (self.about[key] for key in ("layers", "heads", "neurons"))
            broken = self.about["format"] != FORMAT or min(self.layers, self._heads, self._neurons) < 1
        except OSError as error:
            raise Refused(f"history file {self.path} cannot be read ({error.strerror}).") from None
        except UNUSABLE:
            broken = True
        if broken:
            raise Refused(f"history file {self.path} is broken or of another version; search again.")
        self.row_bytes = 4 * self.layers * (self._heads + self._neurons)

    def __len__(self) -> int:
        """Whole steps recorded."""
        return max(0, self.path.stat().st_size - HEADER_BYTES) // self.row_bytes

    def coefficients(self, step: int, kind: Kind) -> NDArray[np.float32]:
        """The coefficients after `step` optimizer steps (1 is the first), `[layers, units]`."""
        if not 1 <= step <= len(self):
            raise IndexError(f"step {step} is not in 1..{len(self)}")
        row, split = self._rows[step - 1], self.layers * self._heads
        flat = row[:split] if kind == "heads" else row[split:]
        return np.array(flat).reshape(self.layers, -1)

    def mask(self, step: int, kind: Kind, remove: int | float, scope: Scope | None = None) -> Mask:
        """The mask that would be drawn after `step` steps, unaligned, `[layers, units]`.

        Args:
            step: Optimizer steps done.
            kind: Heads or neurons.
            remove: As in `draw`.
            scope: As in `draw`; by default heads within layers and neurons over all.
        """
        scope = scope or ("layer" if kind == "heads" else "global")
        return keep_mask(np.abs(self.coefficients(step, kind).astype(np.float64)), remove, scope=scope, what=kind)

    def distance(
        self, first: int, second: int, kind: Kind, remove: int | float, scope: Scope | None = None
    ) -> Distance:
        """Mask distance between two steps (Sec. 3.3)."""
        return mask_distance(self.mask(first, kind, remove, scope), self.mask(second, kind, remove, scope))

    def distances(
        self, kind: Kind, remove: int | float, *, steps: Sequence[int], scope: Scope | None = None
    ) -> NDArray[np.float64]:
        """Mask distance between all pairs of `steps`, per layer: `[steps, steps, layers]` (Fig. 1)."""
        masks = np.stack([self.mask(step, kind, remove, scope) for step in steps])
        return np.stack([(masks != mask).mean(axis=2) for mask in masks])

    @cached_property
    def _rows(self) -> NDArray[np.float32]:
        shape = (len(self), self.row_bytes // 4)
        return np.memmap(self.path, dtype="<f4", mode="r", offset=HEADER_BYTES, shape=shape)
