"""A model as one graph: what it takes, which dimensions may change, and the `.pt2` file of `torch.export`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import Anatomy, Refused, of
from ..ticket.exact import as_written, full_precision
from .folder import new_folder

SIZES = ((3, 11), (1, 2), (5, 23))
"""Rows and tokens of the batches that are tried; the first is traced, and has no size that anything in a model has."""
SHORTEST = 2
"""Tokens a row has at least: the special ones."""
OUTPUTS = ("logits", "start_logits", "end_logits"), ("last_hidden_state",)
"""What a graph puts out: the first of these kinds that the model has."""
TOLERANCE = 1e-4
"""Largest difference of logits to the model's, in units of the largest logit, or absolute below 1."""


class OfText(nn.Module):
    """A model from token ids `[batch, length]` and their mask to a tuple of tensors."""

    def __init__(self, model: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in order."""
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        return tuple(found[name] for name in self.outputs)


class OfTypedText(OfText):
    """A model from token ids, their mask and their types `[batch, length]` to a tuple of tensors."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """The outputs, in order."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        found = self.model(**inputs, return_dict=True)
        return tuple(found[name] for name in self.outputs)


class OfImages(OfText):
    """A model from pixels `[batch, channels, height, width]` to a tuple of tensors."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The outputs, in order."""
        found = self.model(pixel_values=pixel_values, return_dict=True)
        return tuple(found[name] for name in self.outputs)


@dataclass(frozen=True)
class Graph:
    """A model ready to be traced."""

    module: OfText
    batches: list[dict[str, Tensor]]
    """Of `SIZES`; the first is the one to trace."""
    dynamic: dict[str, dict[int, Any]]
    """For each input the dimensions that may change."""
    expected: list[tuple[Tensor, ...]]
    """The model's outputs for each batch."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return self.module.outputs

    def compare(self, run: Callable[[dict[str, Tensor]], Any], what: str) -> None:
        """Hold what was exported against the model.

        Raises:
            Refused: It computes something else, or cannot take another number of rows or tokens.
        """
        for batch, expected in zip(self.batches, self.expected, strict=True):
            shape = "x".join(map(str, next(iter(batch.values())).shape))
            try:
                found = run(batch)
            except Exception as error:  # whatever the runtime raises, the file is of no use
                raise Refused(f"the exported {what} does not run on a batch of {shape} ({one_line(error)}).") from error
            for name, a, b in zip(self.outputs, found, expected, strict=True):
                error = float((torch.as_tensor(a) - b).abs().max()) / max(1.0, float(b.abs().max()))
                if not error <= TOLERANCE:
                    raise Refused(
                        f"the exported {what} differs from the model by {error:.1e} in {name} on a batch of {shape} "
                        f"(at most {TOLERANCE:.0e}); nothing was written."
                    )


@contextmanager
def graph(model: Any) -> Iterator[Graph]:
    """A model ready to be traced inside: in fp32 and eval mode on the CPU, which it stays, and `as_written`.

    Raises:
        Refused: The model is unsupported, or more than one graph.
    """
    anatomy, kind = of(model), type(model).__name__
    if anatomy.core:
        raise Refused(f"{kind} has a decoder, whose steps depend on the data, so that it is not one graph.")
    if kind.endswith(("ForMultipleChoice", "DoubleHeadsModel", "ForPreTraining")):
        raise Refused(f"{kind} takes or gives more than rows and logits; export it with another head, or none.")
    model = model.float().cpu().eval()
    with as_written(model):
        yield _ready(model, anatomy)


def _ready(model: Any, anatomy: Anatomy) -> Graph:
    longest = anatomy.family.longest(model.config)
    batches = [batch_of(model, anatomy, rows, min(length, longest)) for rows, length in SIZES]
    with torch.no_grad(), full_precision():
        found = [model(**batch, return_dict=True) for batch in batches]
        outputs = next((kept for names in OUTPUTS if (kept := tuple(name for name in names if name in found[0]))), None)
        if outputs is None:
            name = type(model).__name__
            raise Refused(f"{name} gives neither logits nor hidden states; export it with another head, or none.")
    kinds = {"pixel_values": OfImages, "token_type_ids": OfTypedText}
    module = next((kind for name, kind in kinds.items() if name in batches[0]), OfText)
    expected = [tuple(each[name] for name in outputs) for each in found]
    return Graph(module(model, outputs).eval(), batches, dynamic(model, anatomy, batches[0]), expected)


def batch_of(model: Any, anatomy: Anatomy, rows: int, length: int) -> dict[str, Tensor]:
    """A random batch; where it is text, its last row ends in padding, and each row has tokens of every type.

    Raises:
        Refused: The model does not know its padding.
    """
    config = model.config
    if "vocab_size" in config.to_dict() and getattr(config, "pad_token_id", None) is None:
        raise Refused(f"{type(model).__name__} has no pad_token_id in its config, which rows of several lengths need.")
    batch = anatomy.family.inputs(config, rows, length, length // 3)
    takes = inspect.signature(model.forward).parameters
    types = getattr(config, "type_vocab_size", None) or 0
    if types > 1 and "input_ids" in batch:
        batch["token_type_ids"] = (torch.arange(length) * types // length).repeat(rows, 1)
    return {name: value for name, value in batch.items() if name in takes}


def dynamic(model: Any, anatomy: Anatomy, batch: dict[str, Tensor]) -> dict[str, dict[int, Any]]:
    """The number of rows, and for text their length, as `torch.export` is told of them."""
    rows = torch.export.Dim("batch", min=1, max=1 << 16)
    length = torch.export.Dim("length", min=SHORTEST, max=anatomy.family.longest(model.config))
    return {name: {0: rows, 1: length} if value.dim() == 2 else {0: rows} for name, value in batch.items()}


def program(model: Any, folder: str | Path, *, tokenizer: Any = None) -> Path:
    """Write `model.pt2`, which `torch.export.load` reads without `transformers` or this package.

    Its module takes `input_ids` and `attention_mask` `[batch, length]` by name (or `pixel_values`), and with them
    `token_type_ids` where the model has more than one type; it returns a tuple.

    Args:
        model: A supported model, cut or whole; it is turned to fp32 and eval mode on the CPU.
        folder: To be made; `config.json` is in it too.
        tokenizer: Saved along.

    Raises:
        Refused: The model cannot be exported, the folder is not empty, or what was written is not equal.
    """
    with graph(model) as ready, new_folder(folder, model, tokenizer) as fresh:
        file = fresh / "model.pt2"
        with torch.no_grad(), full_precision():
            try:
                traced = torch.export.export(ready.module, (), ready.batches[0], dynamic_shapes=ready.dynamic)
            except Exception as error:  # torch has many kinds of these, and all mean the same to the caller
                raise Refused(f"torch.export cannot trace {type(model).__name__} ({one_line(error)}).") from error
            torch.export.save(traced, file)
            loaded = torch.export.load(file).module()
            ready.compare(lambda batch: loaded(**batch), "program")
    return Path(folder) / file.name


def one_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
