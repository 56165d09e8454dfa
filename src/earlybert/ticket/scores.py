"""Importance of every head and neuron, and where it came from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..anatomy import Anatomy, Refused
from .gates import Gates
from .tensors import Kind, typed
from .ticket import Ticket

FILE = Kind("scores file", "earlybert-scores-1", "search again")


@dataclass(frozen=True)
class Scores:
    """One vector a layer for heads and for neurons, on the CPU in fp32.

    A ticket is drawn by magnitude, so a sign carries no meaning.

    Scores of a cut model have the length of the whole one, so that an index means the same unit everywhere; `within`
    says which of them are of something that is still there.

    Raises:
        Refused: Shapes do not belong together, or a score is not finite.
    """

    heads: tuple[Tensor, ...]
    """For each layer, fp32 `[heads of the whole model]`."""
    neurons: tuple[Tensor, ...]
    """For each layer, fp32 `[neurons of the whole model]`."""
    model_type: str
    """`config.model_type` of the model they were taken from."""
    source: str = "coefficients"
    """What they are: the final coefficients of a search, or the name of another importance."""
    steps: int = 0
    """Optimizer steps that made them."""
    seed: int = 0
    """Breaks ties when drawing."""
    info: dict[str, Any] = field(default_factory=dict)
    """How they were made (lambda, learning rates, why the search ended). JSON values only."""
    weights: dict[str, Tensor] | None = None
    """theta_T, the searched weights under the model's own names, when they were kept."""
    within: Ticket | None = None
    """What the model had, where it was cut before; None for a whole one."""

    def __post_init__(self) -> None:
        if len(self.heads) != len(self.neurons) or not self.heads:
            raise Refused(
                f"scores need heads and neurons for the same layers, got {len(self.heads)} and {len(self.neurons)}."
            )
        for what, vectors in (("heads", self.heads), ("neurons", self.neurons)):
            if len({tuple(vector.shape) for vector in vectors}) != 1 or vectors[0].dim() != 1:
                raise Refused(f"scores of {what} must be one vector a layer, all of one length.")
            for number, vector in enumerate(vectors):
                if not torch.isfinite(vector).all():
                    raise Refused(f"scores of {what} in layer {number} are not finite; the search has diverged.")
        if self.within is not None:
            shapes = [(self.within.layers, size) for size in (self.within.num_heads, self.within.num_neurons)]
            if shapes != [(len(vectors), len(vectors[0])) for vectors in (self.heads, self.neurons)]:
                raise Refused("scores of a cut model need one value for each head and neuron of the whole one.")
        for name in ("heads", "neurons"):
            plain = tuple(vector.detach().to("cpu", torch.float32) for vector in getattr(self, name))
            object.__setattr__(self, name, plain)

    @classmethod
    def of_gates(cls, gates: Gates, **about: Any) -> Scores:
        """The coefficients as they stand."""
        heads, neurons = (p.detach().to("cpu", torch.float32, copy=True) for p in gates.parameters())
        return cls(tuple(heads), tuple(neurons), gates.anatomy.model_type, within=_within(gates.anatomy), **about)

    @classmethod
    def of_units(cls, anatomy: Anatomy, heads: Sequence[Tensor], neurons: Sequence[Tensor], **about: Any) -> Scores:
        """Scores of what a model has, whole or cut.

        Args:
            anatomy: Of the model.
            heads: For each layer, one value for each head that is there.
            neurons: The same for neurons.
            **about: Further fields.
        """
        anatomy.refuse_unknown()
        left = anatomy.left
        of_heads = _spread(heads, left.heads, left.num_heads)
        of_neurons = _spread(neurons, left.neurons, left.num_neurons)
        return cls(of_heads, of_neurons, anatomy.model_type, within=_within(anatomy), **about)

    def digest(self) -> str:
        """SHA-256 over the scores themselves, to say which scores a ticket came from."""
        sha = hashlib.sha256()
        for vector in (*self.heads, *self.neurons):
            sha.update(vector.contiguous().numpy().astype("<f4").tobytes())
        return sha.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as safetensors; whole or not at all."""
        tensors = {"heads": torch.stack(self.heads), "neurons": torch.stack(self.neurons)}
        for name, tensor in (self.weights or {}).items():
            tensors[f"weights.{name}"] = tensor.detach().cpu().contiguous().clone()
        about = {
            "model_type": self.model_type,
            "source": self.source,
            "steps": self.steps,
            "seed": self.seed,
            "info": self.info,
        }
        if self.within is not None:
            about["within"] = self.within.to_dict()
        FILE.write(path, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, weights: bool = True) -> Scores:
        """Read a scores file.

        Args:
            path: The file.
            weights: Also read theta_T, if it is there.

        Raises:
            Refused: The file is missing or is not one.
        """
        with FILE.reading(path):
            about, tensors = FILE.read(path, only=None if weights else ("heads", "neurons"))
            within = about.pop("within", None)  # only in those of a cut model
            typed(about, model_type=str, source=str, steps=int, seed=int, info=dict)
            heads, neurons = matrices = tensors.pop("heads"), tensors.pop("neurons")
            if any(matrix.dim() != 2 or not matrix.numel() or not matrix.is_floating_point() for matrix in matrices):
                raise ValueError("not one vector a layer")
            kept = {name.removeprefix("weights."): tensor for name, tensor in tensors.items()} or None
            if within is not None:
                within = Ticket.from_dict(within, f"the ticket in scores file {os.fspath(path)}")
            return cls(tuple(heads), tuple(neurons), weights=kept, within=within, **about)


def _spread(layers: Sequence[Tensor], left: Sequence[Sequence[int]], size: int) -> tuple[Tensor, ...]:
    """One value a unit that is there to one a unit of the whole model, 0 for the others."""
    return tuple(
        torch.zeros(size).index_copy(0, torch.tensor(units), row.detach().float().cpu())
        for row, units in zip(layers, left, strict=True)
    )


def _within(anatomy: Anatomy) -> Ticket | None:
    return None if anatomy.whole else Ticket.of(anatomy)
