"""Rows without padding: all tokens of a batch behind one another, and where each row begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..anatomy import Refused
from ..tasks.batches import IGNORED, Batch

ALIGNED = 16
"""Bytes; where a tensor in a common buffer may begin."""
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
        longest: No row is longer, nor the free one where no length was given to `pack`.
        buffer: Bytes that all inputs and bounds are views of, after `together`.
    """

    inputs: Batch
    bounds: Tensor
    lengths: tuple[int, ...]
    longest: int
    buffer: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows that are not made up."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Places, free ones included."""
        return self.inputs["input_ids"].shape[1]

    def take(self, other: Packed) -> None:
        """Take over the content of a batch of the same sizes; after `together` or `duplicate`."""
        assert self.buffer is not None
        assert other.buffer is not None
        self.buffer.copy_(other.buffer)


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
        if name in ("attention_mask", "position_ids") or (name == "token_type_ids" and not token_types):
            continue
        along = name in TOKENS_ALONG and not value.is_floating_point()  # several labels a row are fp32
        if value.shape == keep.shape and along:
            fill = IGNORED if name == "labels" else 0
            inputs[name] = torch.nn.functional.pad(value[keep], (0, free), value=fill)[None]
        else:
            padding = [0, 0] * (value.dim() - 1) + [0, missing]
            inputs[name] = torch.nn.functional.pad(value, padding, value=IGNORED) if missing else value
    if token_types and "token_type_ids" not in inputs:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if "position_ids" in batch:  # a person's own, as the model takes them
        inside = batch["position_ids"].expand_as(keep)[keep]
    else:
        inside = torch.arange(keep.shape[1]).expand_as(keep)[keep] + position_offset
    # Free places all stand at the first position: a model may have fewer positions than there are free places.
    inputs["position_ids"] = torch.nn.functional.pad(inside, (0, free), value=position_offset)[None]

    bounds = torch.zeros(wanted + 2, dtype=torch.int32)
    bounds[1 : len(sizes) + 1] = sizes.cumsum(0)
    bounds[len(sizes) + 1 : wanted + 1] = used
    bounds[-1] = used + free
    lengths = tuple(sizes.tolist())
    return Packed(inputs, bounds, lengths, longest or max(*lengths, free))


def refuse_unpackable(batch: Batch, config: Any) -> None:
    """What a packed step would compute something else from, or read beyond its tables for.

    Args:
        batch: Padded, with an `attention_mask` where there is padding.
        config: Of the model.

    Raises:
        Refused: Rows are not token ids with their padding behind them, or a number is beyond its embeddings.
    """
    mask = batch.get("attention_mask")
    if "input_ids" not in batch or (mask is not None and mask.dim() != 2):
        raise Refused(
            "the fast step packs rows of input_ids by an attention_mask [rows, length]; for other inputs take the "
            'eager step (engine="eager").'
        )
    if mask is not None and not (bool(mask[:, 0].all()) and bool((mask[:, 1:] <= mask[:, :-1]).all())):
        raise Refused(
            "the fast step takes rows that begin with a token and have their padding behind the last one; pad on the "
            'right and leave out empty rows, or take the eager step (engine="eager").'
        )
    ids = batch["input_ids"] if mask is None else batch["input_ids"][mask.bool()]
    if int(ids.max()) >= config.vocab_size or int(ids.min()) < 0:
        raise Refused(
            f"a batch has token ids of {int(ids.min())} to {int(ids.max())}, and the model has embeddings for 0 to "
            f"{config.vocab_size - 1}; take the tokenizer of the model, or resize_token_embeddings."
        )


def together(packed: Packed, device: torch.device) -> Packed:
    """A packed batch on `device` by one copy, from pinned memory where a GPU reads it.

    Args:
        packed: On the CPU.
        device: Where it goes.
    """
    tensors = {"": packed.bounds, **packed.inputs}
    ends = np.cumsum([-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors.values()]).tolist()
    begins = dict(zip(tensors, [0, *ends], strict=False))
    buffer = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for name, tensor in tensors.items():
        _view(buffer, begins[name], tensor).copy_(tensor)
    buffer = buffer.to(device, non_blocking=True)
    views = {name: _view(buffer, begins[name], tensor) for name, tensor in tensors.items()}
    return replace(packed, bounds=views.pop(""), inputs=views, buffer=buffer)


def duplicate(packed: Packed) -> Packed:
    """The same in a buffer of its own, which later batches of its size can be copied into."""
    assert packed.buffer is not None
    buffer = packed.buffer.clone()
    views = {
        name: _view(buffer, tensor.storage_offset() * tensor.element_size(), tensor)
        for name, tensor in {"": packed.bounds, **packed.inputs}.items()
    }
    return replace(packed, bounds=views.pop(""), inputs=views, buffer=buffer)


def _view(buffer: Tensor, begin: int | torch.SymInt, like: Tensor) -> Tensor:
    return buffer[begin : begin + like.nbytes].view(like.dtype).view(like.shape)


def shapes(batches: Sequence[Batch]) -> list[tuple[int, int]]:
    """`(1, tokens)` for every row: what a batch costs when no padding is computed."""
    return [(1, int(length)) for batch in batches for length in batch["attention_mask"].sum(1).tolist()]
