"""A second aim for a ticket's first steps: hidden states like those of the model it was cut from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy import Refused, of
from ..anatomy.modes import evaluating
from ..cost import Cost
from .step import EagerStep


@dataclass(frozen=True)
class MatchedCost:
    """What a step costs that also runs the teacher forward."""

    student: Cost
    teacher: Cost

    def step(self, shapes: Iterable[tuple[int, int]]) -> int:
        """FLOPs: forward and backward of the student, forward of the teacher."""
        shapes = list(shapes)
        return self.student.step(shapes) + self.teacher.forward(shapes)


@contextmanager
def matching(step: EagerStep, teacher: nn.Module, weight: float) -> Iterator[None]:
    """Inside, every step adds `weight` times the distance of hidden states to its task loss.

    The distance is the squared error over the teacher's mean square, over all tokens of a micro-batch, averaged over
    what each layer but the first is given and what the last one puts out (as TinyBERT's hidden-state
    loss, Jiao et al. 2020, Eq. 8, without its projection: a ticket keeps the hidden size). The teacher
    runs in eval mode and learns nothing. The loss that a step returns stays the task's.

    Args:
        step: Of the student; not a captured one.
        teacher: A model with as many layers and the same hidden size, on the same device.
        weight: Of the distance beside the task loss.

    Raises:
        Refused: Teacher and student do not have the same layers, or the step is a captured one.
    """
    if type(step).__call__ is not EagerStep.__call__:
        raise Refused(f"{type(step).__name__} is captured; hidden states are matched in a step that is not.")
    names, stack = [layer.query for layer in of(step.model).layers], of(step.model).stack
    if names != [layer.query for layer in of(teacher).layers] or stack != of(teacher).stack:
        raise Refused("hidden states can only be matched to those of a model with the same layers.")
    reader = step.reading(teacher)
    with _states(step.model, names[1:], stack) as mine, _states(teacher, names[1:], stack) as its, evaluating(teacher):

        def distance(batch: Any) -> Tensor:
            with torch.no_grad():
                reader.loss(batch)
            parts = [
                _relative(step.tokens(mine[name], batch), step.tokens(its[name], batch)) for name in (*names[1:], stack)
            ]
            mine.clear()  # or the graph of this batch would live on
            return weight * torch.stack(parts).mean()

        step.aim = distance
        try:
            yield
        finally:
            step.aim = None


def _relative(mine: Tensor, its: Tensor) -> Tensor:
    """Squared error over the mean square of `its`, both `[tokens, hidden]`."""
    its = its.float()
    return (mine.float() - its).square().mean() / its.square().mean()


@contextmanager
def _states(model: nn.Module, names: list[str], stack: str) -> Iterator[dict[str, Tensor]]:
    """What the linears of these names were given last, and what the stack of layers put out, by name."""
    found: dict[str, Tensor] = {}

    def begin(_: nn.Module, __: Any) -> None:
        found.clear()  # an evaluation may have been in between

    def given(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            found.setdefault(name, inputs[0])  # DeBERTa gives a linear the positions too, behind the tokens

        return hook

    def put_out(_: nn.Module, __: Any, output: Any) -> None:
        found[stack] = output[0]

    whole = model.get_submodule(stack)
    handles = [model.get_submodule(name).register_forward_pre_hook(given(name)) for name in names]
    handles += [whole.register_forward_pre_hook(begin), whole.register_forward_hook(put_out)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
