"""Importance of every head and neuron, and where it came from."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..anatomy import Refused
from .gates import Gates
from .tensors import Kind, typed

FILE = Kind("scores file", "earlybert-scores-1", "search again")


@dataclass(frozen=True)
class Scores:
    """One vector a layer for heads and for neurons, on the CPU in fp32.

    A ticket is drawn by magnitude, so a sign carries no meaning.

    Raises:
        Refused: Shapes do not belong together, or a score is not finite.
    """

    heads: tuple[Tensor, ...]
    """For each layer, fp32 `[heads]`."""
    neurons: tuple[Tensor, ...]
    """For each layer, fp32 `[neurons]`."""
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
        for name in ("heads", "neurons"):
            plain = tuple(vector.detach().to("cpu", torch.float32) for vector in getattr(self, name))
            object.__setattr__(self, name, plain)

    @classmethod
    def of_gates(cls, gates: Gates, **about: Any) -> Scores:
        """The coefficients as they stand."""
        heads, neurons = (p.detach().to("cpu", torch.float32, copy=True) for p in gates.parameters())
        return cls(tuple(heads), tuple(neurons), gates.anatomy.model_type, **about)

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
            typed(about, model_type=str, source=str, steps=int, seed=int, info=dict)
            heads, neurons = matrices = tensors.pop("heads"), tensors.pop("neurons")
            if any(matrix.dim() != 2 or not matrix.numel() or not matrix.is_floating_point() for matrix in matrices):
                raise ValueError("not one vector a layer")
            kept = {name.removeprefix("weights."): tensor for name, tensor in tensors.items()} or None
            return cls(tuple(heads), tuple(neurons), weights=kept, **about)
