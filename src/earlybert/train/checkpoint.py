"""A training stage in one file: whole or not there, and nothing in it is ever unpickled."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import Refused
from ..ticket import Gates
from ..ticket.tensors import Kind, typed
from .sharded import gathered, like

FILE = Kind("checkpoint", "earlybert-checkpoint-1", "start a new run")


def save(
    path: str | os.PathLike[str],
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    gates: Gates | None = None,
    state: dict[str, Any],
    write: bool = True,
) -> None:
    """Write weights, buffers, coefficients, optimizer and random state.

    The file does not tell whether the model was sharded: tensors are whole.

    Args:
        path: The file; an older one is replaced only when the new one is whole.
        model: Its own names are used.
        optimizer: Over its parameters and those of `gates`.
        gates: Coefficients of a search.
        state: Anything else to remember. JSON values only.
        write: Whether this process writes; of a sharded model, all have to call this.

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
    header = {"state": state, "groups": about["param_groups"], "numbers": numbers}
    plain = {name: tensor.contiguous() for name, tensor in gathered(tensors, keep=write).items()}
    if write:
        FILE.write(path, plain, header)


def load(
    path: str | os.PathLike[str], *, model: nn.Module, optimizer: torch.optim.Optimizer, gates: Gates | None = None
) -> dict[str, Any]:
    """Put everything back in place, the random state last.

    Returns:
        The `state` that was saved.

    Raises:
        Refused: The file is missing, broken, or of another model.
    """
    header, tensors = FILE.read(path)
    values = _values(model, gates)
    _refuse_other(path, {name: t for name, t in tensors.items() if name.startswith(("model.", "gates."))}, values)
    with FILE.reading(path):
        typed(header, state=dict, groups=list, numbers=dict)
        _put_back(header, tensors, values, optimizer)
    return header["state"]


def load_model(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Put weights and buffers alone in place.

    Raises:
        Refused: The file is missing, broken, or of another model.
    """
    values = _values(model, None)
    _, tensors = FILE.read(path, only=values)
    with FILE.reading(path), torch.no_grad():
        _refuse_other(path, tensors, values)
        for name, value in values.items():
            value.copy_(tensors[name])


def peek(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The `state` of a checkpoint, without loading the rest.

    Raises:
        Refused: The file is missing or broken.
    """
    with FILE.reading(path):
        header, _ = FILE.read(path, only=())
        typed(header, state=dict)
        typed(header["state"], step=int)
    return header["state"]


def _refuse_other(path: str | os.PathLike[str], saved: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    if set(saved) != set(values) or any(saved[name].shape != value.shape for name, value in values.items()):
        raise Refused(f"checkpoint {os.fspath(path)} is of another model; start a new run.")


def _put_back(
    header: dict[str, Any], tensors: dict[str, Tensor], values: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Set weights, buffers and coefficients, the optimizer's state, and the random state."""
    with torch.no_grad():
        for name, value in values.items():
            value.copy_(like(tensors[name], value))
    state: dict[int, dict[str, Any]] = {int(index): dict(entry) for index, entry in header["numbers"].items()}
    params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            parameter = params[int(index)]
            state.setdefault(int(index), {})[key] = (
                like(tensor, parameter) if tensor.shape == parameter.shape else tensor
            )
    optimizer.load_state_dict({"state": state, "param_groups": header["groups"]})
    for name, tensor in tensors.items():
        if name == "random.cpu":
            torch.set_rng_state(tensor)
        elif name.startswith("random.") and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensor, name.removeprefix("random."))


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
