"""The two kinds of linear layer in stock models: `nn.Linear`, and GPT-2's `Conv1D` with its weight transposed."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .refused import Refused

Linear = nn.Linear | Conv1D


def linear_at(model: nn.Module, name: str) -> Linear:
    """The linear layer of that name.

    Raises:
        AttributeError: There is no such module.
        Refused: It is anything else, such as a quantised layer or an adapter.
    """
    module = model.get_submodule(name)
    if type(module) not in (nn.Linear, Conv1D):
        wrong = type(module)
    elif type(module.weight) is not nn.Parameter and not isinstance(getattr(module, "weight_orig", None), nn.Parameter):
        # quantised or sharded in place; a weight under a mask of torch.nn.utils.prune is plain all the same
        wrong = type(module.weight)
    else:
        assert isinstance(module, (nn.Linear, Conv1D))
        return module
    raise Refused(
        f"{name} is a {wrong.__module__}.{wrong.__qualname__}, not a plain nn.Linear; quantised layers and adapters "
        "have to be merged or removed first."
    )


def axes(linear: nn.Module) -> tuple[int, int]:
    """Dimensions of the weight that are its outputs and its inputs."""
    return (1, 0) if isinstance(linear, Conv1D) else (0, 1)


def outputs(linear: Linear) -> int:
    """Features it puts out."""
    return linear.weight.shape[axes(linear)[0]]


def inputs(linear: Linear) -> int:
    """Features it takes in."""
    return linear.weight.shape[axes(linear)[1]]


def matrix(linear: Linear) -> Tensor:
    """The weight as `[outputs, inputs]`; a view."""
    return linear.weight.t() if isinstance(linear, Conv1D) else linear.weight


def resize(linear: Linear, axis: int, size: int) -> None:
    """Have a layer say that it has `size` outputs or inputs; its tensors, hooks and all else stay."""
    out, into = ("nf", "nx") if isinstance(linear, Conv1D) else ("out_features", "in_features")
    setattr(linear, out if axis == axes(linear)[0] else into, size)
