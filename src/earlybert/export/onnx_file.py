"""ONNX, for onnxruntime and what builds on it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..anatomy import Refused
from ..ticket.exact import full_precision
from .folder import new_folder
from .graph import graph, one_line

NEEDS = ("onnx", "onnxruntime", "onnxscript")


def onnx(model: Any, folder: str | Path, *, tokenizer: Any = None) -> Path:
    """Write `model.onnx`: inputs and outputs by the names they have in `transformers`, any number of rows and tokens.

    A model with more than one type of tokens takes `token_type_ids`, too.

    Args:
        model: A supported model, cut or whole; it is turned to fp32 and eval mode on the CPU.
        folder: To be made; `config.json` is in it too.
        tokenizer: Saved along.

    Raises:
        Refused: The extra `earlybert[export]` is missing, the model cannot be exported, the folder is not empty, or
            onnxruntime computes something else: logits may differ by 1e-4.
    """
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise Refused(
            f"an export to ONNX needs {', '.join(missing)}; install them with pip install 'earlybert[export]'."
        )
    import onnxruntime

    with graph(model) as ready, new_folder(folder, model, tokenizer) as fresh:
        file = fresh / "model.onnx"
        with torch.no_grad(), full_precision(), _quiet():
            try:
                written = torch.onnx.export(
                    ready.module,
                    kwargs=ready.batches[0],
                    input_names=list(ready.batches[0]),
                    output_names=list(ready.outputs),
                    dynamic_shapes=ready.dynamic,
                    dynamo=True,
                    verbose=False,
                )
            except Exception as error:  # whatever the exporter stumbles over, there is no file
                raise Refused(f"torch cannot write {type(model).__name__} as ONNX ({one_line(error)}).") from error
            assert written is not None
            written.save(str(file))  # weights of more than 2 GB go into a file beside it
        try:
            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        except Exception as error:  # as above
            raise Refused(f"onnxruntime cannot open {type(model).__name__} as ONNX ({one_line(error)}).") from error
        ready.compare(
            lambda batch: session.run(None, {name: value.numpy() for name, value in batch.items()}), "ONNX model"
        )
    return Path(folder) / file.name


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that nobody asked for."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
