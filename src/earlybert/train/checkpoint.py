"""A training stage in one file: whole or not there, and nothing in it is ever unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..anatomy import Refused
from ..ticket import Gates
from ..ticket.files import write_atomically

FORMAT = "earlybert-checkpoint-1"


def save(
    path: str | os.PathLike[str],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    gates: Gates | None = None,
    state: dict[str, Any],
) -> None:
    """Write weights, buffers, coefficients, optimizer and random state.

    Args:
        path: The file; an older one is replaced only when the new one is whole.
        model: Its own names are used.
        optimizer: Over its parameters and those of `gates`.
        gates: Coefficients of a search.
        state: Anything else to remember. JSON values only.

    Raises:
        Refused: The disk is full or read-only; the older file is unchanged.
    """
    tensors = _values(model, gates)
    about = optimizer.state_dict()
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in about["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                # A step count may be one tensor for all parameters; the file format wants one each.
                tensors[f"optimizer.{index}.{key}"] = value.clone() if value.dim() == 0 else value
            else:
                numbers.setdefault(str(index), {})[key] = value
    for device, random in _random_states(model).items():
        tensors[f"random.{device}"] = random
    header = {"format": FORMAT, "state": state, "groups": about["param_groups"], "numbers": numbers}
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    metadata = {"earlybert": json.dumps(header)}
    write_atomically(path, lambda temporary: save_file(plain, temporary, metadata))


def load(
    path: str | os.PathLike[str], *, model: nn.Module, optimizer: torch.optim.Optimizer, gates: Gates | None = None
) -> dict[str, Any]:
    """Put everything back in place, the random state last.

    Returns:
        The `state` that was saved.

    Raises:
        Refused: The file is missing, broken, or of another model.
    """
    where = f"checkpoint {os.fspath(path)}"
    header, tensors = _read(Path(path), where)
    values = _values(model, gates)
    saved = {name for name in tensors if name.startswith(("model.", "gates."))}
    if saved != set(values) or any(tensors[name].shape != value.shape for name, value in values.items()):
        raise Refused(f"{where} is of another model; start a new run.")
    with torch.no_grad():
        for name, value in values.items():
            value.copy_(tensors[name])
    state: dict[int, dict[str, Any]] = {int(index): dict(entry) for index, entry in header["numbers"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": header["groups"]})
    for name, tensor in tensors.items():
        if name == "random.cpu":
            torch.set_rng_state(tensor)
        elif name.startswith("random.") and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensor, name.removeprefix("random."))
    return header["state"]


def peek(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `state` of a checkpoint, without loading the rest.

    Raises:
        Refused: The file is missing or broken.
    """
    return _read(Path(path), f"checkpoint {os.fspath(path)}", header_only=True)[0]["state"]


def _read(path: Path, where: str, *, header_only: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            header = json.loads((file.metadata() or {})["earlybert"])
            if header["format"] != FORMAT:
                raise Refused(f"{where} is of another version; start a new run.")
            names = [] if header_only else file.keys()
            return header, {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise Refused(f"{where} is not there.") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{where} is broken; start a new run.") from None


def _values(model: nn.Module, gates: Gates | None) -> dict[str, Tensor]:
    """Parameters, buffers and coefficients by name; tied parameters come once."""
    values: dict[str, Tensor] = {f"model.{name}": value for name, value in model.named_parameters()}
    values.update({f"model.{name}": value for name, value in model.named_buffers()})
    if gates is not None:
        values.update({"gates.heads": gates.heads, "gates.neurons": gates.neurons})
    return values


def _random_states(model: nn.Module) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    device = next(model.parameters()).device
    if device.type == "cuda":
        states[str(device)] = torch.cuda.get_rng_state(device)
    return states
