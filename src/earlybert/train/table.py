"""The gradient of a word embedding on a CPU, of which a step touches a few hundred rows out of tens of thousands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Table:
    """Keeps the gradient of an embedding where it is, and sets only the rows to zero that a step has touched.

    autograd would fill a fresh gradient of the whole table in every backward pass: for MiniLM 47 MB, a tenth of a step
    on rows of 13 tokens. The gradient is the same, and still dense for whoever reads it.

    Args:
        embedding: Its weight is trained and has no other use in the model; on a CPU.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        self.embedding = embedding
        self._gradient: Tensor | None = None
        self._rows: list[Tensor] = []

    @classmethod
    def of(cls, model: nn.Module) -> Table | None:
        """For the word embedding of a model; None where it would not be the same gradient, or not a cheaper one."""
        embedding: Any = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # pyright: ignore
        if type(embedding) is not nn.Embedding or "forward" in vars(embedding):
            return None
        if embedding.sparse or embedding.scale_grad_by_freq:
            return None
        weight = embedding.weight
        uses = sum(each is weight for module in model.modules() for each in module._parameters.values())
        plain = type(weight) is nn.Parameter and embedding.max_norm is None  # not one that is sharded
        fits = plain and weight.requires_grad and weight.device.type == "cpu"
        return cls(embedding) if uses == 1 and fits else None

    @property
    def weight(self) -> Tensor:
        """Of the embedding."""
        return self.embedding.weight

    def clear(self) -> None:
        """Give the weight a gradient of zeros, whatever it had."""
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.weight)
        for rows in self._rows:
            self._gradient[rows] = 0.0
        self._rows = []
        self.weight.grad = self._gradient

    def touched(self) -> Tensor:
        """Rows that may hold something else than zeros, int64, each once."""
        return torch.cat([torch.empty(0, dtype=torch.long), *self._rows]).unique()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes this gradient inside; `clear` comes first."""
        self.embedding.forward = self._forward
        try:
            yield
        finally:
            del self.embedding.forward

    def _forward(self, input: Tensor) -> Tensor:
        out = _Lookup.apply(input, self.weight, self)
        assert isinstance(out, Tensor)
        return out

    def add(self, ids: Tensor, gradient: Tensor) -> None:
        """The gradient of what was looked up; the padding id, if there is one, takes none."""
        assert self._gradient is not None
        ids, gradient = ids.reshape(-1), gradient.reshape(-1, gradient.shape[-1])
        padding = self.embedding.padding_idx
        if padding is not None:
            kept = ids != padding
            ids, gradient = ids[kept], gradient[kept]
        self._gradient.index_add_(0, ids, gradient.to(self._gradient.dtype))
        self._rows.append(ids)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, table: Table) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table = table
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.table.add(ctx.saved_tensors[0], grads[0])
        return None, None, None
