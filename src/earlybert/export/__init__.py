"""A model in formats that other tools know: ONNX, `torch.export`, or a stock checkpoint of full size.

What was written is loaded again and compared with the model before it is put in place.
"""

from collections.abc import Callable
from pathlib import Path

from .full_size import expand, expanded
from .graph import program
from .onnx_file import onnx

FORMATS: dict[str, Callable[..., Path]] = {"onnx": onnx, "torch": program, "expanded": expanded}
"""By the name that the command line knows: `(model, folder, tokenizer=None)` writes a folder and returns the file."""

__all__ = ["FORMATS", "expand", "expanded", "onnx", "program"]
