"""Safetensors files of ours: tensors, and a JSON object in the header under `earlybert` that says what they are."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..anatomy import Refused
from .files import write_atomically
from .memory import out_of_memory

KEY = "earlybert"
DTYPES = {"U16": np.dtype("<u2"), "U32": np.dtype("<u4"), "U64": np.dtype("<u8")}
"""What `mapped` knows, by the names of the file format."""
UNUSABLE = (
    *(SafetensorError, OSError, RuntimeError),
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
)
"""What taking a file apart may raise when it is not what its name says."""


@dataclass(frozen=True)
class Kind:
    """One kind of file: what it is called, and what to do when it cannot be used."""

    name: str
    """In a refusal, before the path."""
    format: str
    """In the header; another one is another version."""
    remedy: str
    """What to do instead, the end of a sentence."""

    def write(self, path: str | os.PathLike[str], tensors: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Write the file; whole or not at all.

        Args:
            path: The file.
            tensors: By name, all of torch or all of numpy, contiguous.
            about: JSON values.

        Raises:
            Refused: The disk is full or the folder cannot be written; an older file is unchanged.
        """
        if all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
            from safetensors.numpy import save_file
        else:
            from safetensors.torch import save_file
        metadata = {KEY: json.dumps({"format": self.format, **about}, sort_keys=True)}
        write_atomically(path, lambda temporary: save_file(dict(tensors), temporary, metadata))

    @contextmanager
    def reading(self, path: str | os.PathLike[str]) -> Iterator[None]:
        """Around taking the file apart: whatever does not fit becomes one sentence.

        Raises:
            Refused: The file is missing, or is not of this kind.
        """
        where = f"{self.name} {os.fspath(path)}"
        try:
            yield
        except Refused:
            raise
        except FileNotFoundError:
            raise Refused(f"{where} is not there.") from None
        except UNUSABLE as error:
            if out_of_memory(error):
                raise
            raise Refused(f"{where} is broken or not a {self.name}; {self.remedy}.") from None

    def read(
        self,
        path: str | os.PathLike[str],
        *,
        only: Collection[str] | None = None,
        framework: Literal["pt", "np"] = "pt",
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The JSON object and the tensors. Shapes and offsets are held against the size of the file first.

        Args:
            path: The file.
            only: Names to read, those that are there; all when None.
            framework: Tensors of torch, or arrays of numpy.

        Raises:
            Refused: The file is missing, broken, or of another version.
        """
        with self.reading(path), safe_open(os.fspath(path), framework=framework) as file:
            about = json.loads((file.metadata() or {})[KEY])
            version = about.pop("format")
            if version != self.format:
                raise Refused(f"{self.name} {os.fspath(path)} is of another version; {self.remedy}.")
            names = [name for name in file.keys() if only is None or name in only]  # noqa: SIM118
            return about, {name: file.get_tensor(name) for name in names}


def typed(about: Mapping[str, Any], **types: Any) -> None:
    """Hold the values of a JSON object against their types, as `isinstance` takes them.

    Raises:
        TypeError: One is of another. KeyError: It is not there.
    """
    for name, wanted in types.items():
        if not isinstance(about[name], wanted) or (wanted is int and isinstance(about[name], bool)):
            raise TypeError(name)


def mapped(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Unsigned integers of any safetensors file, memory-mapped: only what is touched is read.

    Raises:
        What `UNUSABLE` lists: the file is missing, or is none.
    """
    with safe_open(os.fspath(path), framework="np") as file:  # checks that the tensors lie end to end in the file
        found = {name: file.get_slice(name) for name in file.offset_keys()}
        shapes = {name: (DTYPES[part.get_dtype()], part.get_shape()) for name, part in found.items()}
    content = np.memmap(path, dtype=np.uint8, mode="r")
    begin = 8 + int.from_bytes(content[:8].tobytes(), "little")
    arrays = {}
    for name, (dtype, shape) in shapes.items():
        end = begin + dtype.itemsize * int(np.prod(shape, dtype=object))
        arrays[name] = content[begin:end].view(np.ndarray).view(dtype).reshape(shape)
        begin = end
    return arrays
