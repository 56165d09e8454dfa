"""Rows without padding: all tokens of a batch behind one another, and where each row begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tasks.batches import Batch
from .step import IGNORED

TOKENS_ALONG = ("input_ids", "token_type_ids", "labels")
"""Entries of a padded batch with one value a token; `labels` only where they are `[rows, length]`."""


@dataclass(frozen=True)
class Packed:
    """A batch as `[1, tokens]`, with room at its end that belongs to no row.

    Attributes:
        inputs: What the model takes: `input_ids`, `position_ids` and, for models that have them,
            `token_type_ids`, int64 `[1, tokens]`; labels as they were, or `[1, tokens]`.
        bounds: First token of each row, then the first free place, then the end: int32 `[rows + 2]`.
            The free places at the end form a row of their own, so that every token has one.
        lengths: Tokens of each row; plain integers, known without asking the device.
        longest: No row, the free one included, is longer.
    """

    inputs: Batch
    bounds: Tensor
    lengths: tuple[int, ...]
    longest: int

    @property
    def rows(self) -> int:
        """Rows that are not made up."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Places, free ones included."""
        return self.inputs["input_ids"].shape[1]

    def clone(self) -> Packed:
        """The same in memory of its own."""
        inputs = {name: tensor.clone() for name, tensor in self.inputs.items()}
        return Packed(inputs, self.bounds.clone(), self.lengths, self.longest)

    def take(self, other: Packed) -> None:
        """Take over the tensors' content from a batch of the same sizes."""
        for name, tensor in other.inputs.items():
            self.inputs[name].copy_(tensor)
        self.bounds.copy_(other.bounds)


def pack(
    batch: Batch,
    *,
    position_offset: int = 0,
    token_types: bool = True,
    multiple: int = 1,
    rows: int | None = None,
    longest: int | None = None,
) -> Packed:
    """Leave the padding out.

    Args:
        batch: Padded, on the CPU, with an `attention_mask` `[rows, length]` of ones and zeros. The
            content of padding does not matter.
        position_offset: Position of a row's first token (RoBERTa counts from behind its padding id).
        token_types: Whether the model takes `token_type_ids`; zeros where the batch has none.
        multiple: Tokens are rounded up to this.
        rows: Rows to make it look like, with made-up ones of no tokens whose label is ignored.
        longest: What to call the longest row; by default its true length.
    """
    keep = batch["attention_mask"].bool()
    sizes = keep.sum(1)
    used = int(sizes.sum())
    free = -used % multiple
    wanted = len(sizes) if rows is None else rows
    missing = wanted - len(sizes)

    inputs: Batch = {}
    for name, value in batch.items():
        if name == "attention_mask" or (name == "token_type_ids" and not token_types):
            continue
        if value.shape == keep.shape and name in TOKENS_ALONG:
            fill = IGNORED if name == "labels" else 0
            inputs[name] = torch.nn.functional.pad(value[keep], (0, free), value=fill)[None]
        else:
            padding = [0, 0] * (value.dim() - 1) + [0, missing]
            inputs[name] = torch.nn.functional.pad(value, padding, value=IGNORED) if missing else value
    if token_types and "token_type_ids" not in inputs:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    inside = torch.arange(keep.shape[1]).expand_as(keep)[keep]
    # Free places all stand at the first position: a model may have fewer positions than there are free places.
    inputs["position_ids"] = torch.nn.functional.pad(inside, (0, free))[None] + position_offset

    bounds = torch.zeros(wanted + 2, dtype=torch.int32)
    bounds[1 : len(sizes) + 1] = sizes.cumsum(0)
    bounds[len(sizes) + 1 : wanted + 1] = used
    bounds[-1] = used + free
    lengths = tuple(sizes.tolist())
    return Packed(inputs, bounds, lengths, longest or max(*lengths, free))


def shapes(batches: Sequence[Batch]) -> list[tuple[int, int]]:
    """`(1, tokens)` for every row: what a batch costs when no padding is computed."""
    return [(1, int(length)) for batch in batches for length in batch["attention_mask"].sum(1).tolist()]
