"""Encoded rows to batches of like length, in an order that a seed and a step number give back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Batch = dict[str, Tensor]
"""What a model accepts, labels included; the first dimension is rows."""

IGNORED = -100
"""The label that `transformers` leaves out of the loss."""
POOL = 64
"""Batches whose rows are sorted by length together: enough to leave little padding, few enough to stay random."""
PAD_TO = 8
"""Lengths are rounded up to this: matrix units want multiples of it."""

Shape = tuple[int, int]
"""Rows and padded length of one micro-batch."""


@dataclass(frozen=True)
class Rows:
    """Tokenised examples."""

    input_ids: Sequence[Sequence[int]]
    """Token ids of each row, special tokens included."""
    token_type_ids: Sequence[Sequence[int]] | None
    """Segment of each token, for models that take them."""
    targets: Mapping[str, Sequence[int] | Sequence[float]]
    """What is to be predicted of each row, by the names that models take: `labels` (class numbers, or values for
    regression), or `start_positions` and `end_positions`."""
    pad_id: int = 0
    """Token id of padding."""
    max_length: int | None = None
    """No row is padded beyond this; a model may have no more positions."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, `[rows]`."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def padded(self, length: int) -> int:
        """What a batch is padded to whose longest row has so many tokens."""
        wanted = -(-length // PAD_TO) * PAD_TO
        return wanted if self.max_length is None else max(length, min(wanted, self.max_length))

    def digest(self) -> str:
        """SHA-256 over the tokens and targets of all rows, to know them again."""
        sha = hashlib.sha256()
        for name, column in sorted(self.targets.items()):
            sha.update(name.encode() + np.asarray(column, dtype=np.float64).tobytes())
        for ids in self.input_ids:
            sha.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
        return sha.hexdigest()

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> Batch:
        """These rows, padded to the longest of them: int64 `[rows, length]`, targets `[rows]`."""
        length = self.padded(max(len(self.input_ids[row]) for row in rows))
        ids = np.full((len(rows), length), self.pad_id, dtype=np.int64)
        types = np.zeros_like(ids)
        attention = np.zeros_like(ids)
        for place, row in enumerate(rows):
            size = len(self.input_ids[row])
            ids[place, :size] = self.input_ids[row]
            attention[place, :size] = 1
            if self.token_type_ids is not None:
                types[place, :size] = self.token_type_ids[row]
        batch = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(attention)}
        if self.token_type_ids is not None:
            batch["token_type_ids"] = torch.from_numpy(types)
        for name, column in self.targets.items():
            wanted = [column[row] for row in rows]
            batch[name] = torch.tensor(wanted, dtype=torch.float32 if isinstance(wanted[0], float) else torch.long)
        return batch

    def read(self, output: Any, rows: NDArray[np.int64]) -> NDArray[Any]:
        """What a model's output says of these rows: class numbers (int64) or values (float64), `[rows]`.

        Args:
            output: Of the model, for `batch(rows)`.
            rows: Row numbers.
        """
        logits = output.logits.float()  # [rows, classes]
        return (logits.argmax(-1) if logits.shape[-1] > 1 else logits[:, 0].double()).cpu().numpy()


class Chances(Rows):
    """Rows of which the probability of every class is read."""

    @classmethod
    def of(cls, rows: Rows) -> Chances:
        """The same rows, to be read in this way."""
        return cls(**vars(rows))

    def read(self, output: Any, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Softmax of the logits, `[rows, classes]`."""
        return output.logits.double().softmax(-1).cpu().numpy()


class Stream:
    """An endless stream of optimizer steps' worth of micro-batches.

    Every epoch is shuffled anew; within pools rows are sorted by length, so that a batch holds
    little padding, and the order of batches is shuffled again. The last batch of an epoch may be
    short. Any step can be reached directly, so a resumed run sees what it would have seen.

    Args:
        rows: The examples.
        batch_size: Rows per micro-batch.
        accumulate: Micro-batches per optimizer step.
        seed: One or more integers; with the epoch number they decide the order.
    """

    def __init__(self, rows: Rows, *, batch_size: int, accumulate: int = 1, seed: Sequence[int] = (0,)) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.seed = tuple(seed)
        self.steps_per_epoch = math.ceil(math.ceil(len(rows) / batch_size) / accumulate)
        self._lengths = rows.lengths
        self._plan = lru_cache(maxsize=1)(self._plan_epoch)

    def starting_at(self, step: int) -> Iterator[list[Batch]]:
        """Micro-batches of optimizer step `step` (0 is the first), the next, and so on."""
        while True:
            yield [self.rows.batch(rows) for rows in self._rows_of(step)]
            step += 1

    def shapes(self, step: int, *, padded: bool = True) -> list[Shape]:
        """Rows and length of each micro-batch of a step, without building it; each row's own when not padded."""
        if not padded:
            return [(1, int(length)) for rows in self._rows_of(step) for length in self._lengths[rows]]
        return [(len(rows), self.rows.padded(int(self._lengths[rows].max()))) for rows in self._rows_of(step)]

    def _rows_of(self, step: int) -> list[NDArray[np.int64]]:
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._plan(epoch)[place * self.accumulate : (place + 1) * self.accumulate]

    def _plan_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        random = np.random.default_rng([*self.seed, epoch])
        order = random.permutation(len(self._lengths))
        batches: list[NDArray[np.int64]] = []
        pool = self.batch_size * POOL
        for begin in range(0, len(order), pool):
            part = order[begin : begin + pool]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            batches += [part[at : at + self.batch_size] for at in range(0, len(part), self.batch_size)]
        return [batches[place] for place in random.permutation(len(batches))]


def shape_of(batch: Batch) -> Shape:
    """Rows and padded length of a batch."""
    rows, length = batch["input_ids"].shape
    return rows, length


def in_order(rows: Rows, batch_size: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Every row once, by length, with the row numbers of each batch: for evaluation."""
    order = np.argsort(rows.lengths, kind="stable")
    for begin in range(0, len(order), batch_size):
        numbers = order[begin : begin + batch_size]
        yield numbers, rows.batch(numbers)
