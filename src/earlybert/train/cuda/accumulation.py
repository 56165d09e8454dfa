"""One optimizer step from many micro-batches on a GPU: each size of micro-batch one CUDA graph, the update another.

The first runs forward and backward and adds the gradients to fp32 totals; the second clips and takes the optimizer's
step. What several processes have to tell each other lies between the two, in no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..pack import Packed, duplicate
from ..step import unmarked
from .totals import Totals

if TYPE_CHECKING:
    from .graphed import GraphedStep


@dataclass
class Replay:
    """A graph, and the tensors it reads."""

    graph: torch.cuda.CUDAGraph
    packed: Packed | None = None
    """The micro-batch, whose content changes."""
    share: Tensor | None = None
    """Of the micro-batch in the step's loss, fp32 scalar."""
    addresses: Sequence[Tensor] = ()
    """Of gradients."""


class Accumulation:
    """A step that `GraphedStep` takes in parts.

    Args:
        step: Gives the loss, the optimizer, the coefficients, and the graphs.
    """

    def __init__(self, step: GraphedStep) -> None:
        self.step = step
        self.totals = Totals(step.sources(), step.optimizer, step.max_grad_norm)
        self._loss = torch.zeros((), device=step.device)
        self._addresses: list[Tensor] = []

    def __call__(self, prepared: Sequence[tuple[Packed, float]]) -> Tensor:
        """As `EagerStep`."""
        step, totals = self.step, self.totals
        totals.clear()
        self._loss.zero_()
        for (packed, _), share in zip(prepared, step.shares(prepared), strict=True):
            if share:  # else no label in it counts, and its mean loss is not a number
                self._add(packed, share)
        step.mark("optimizer")
        with totals.as_gradients():
            step.combine(self._loss)  # in place
        step.graphs.around(totals.set_rates)  # the first time it makes the moments
        update = step.graphs.find("update", lambda: Replay(step.graphs.capture(totals.update)[0]))
        if update is None:
            totals.update()
        else:
            update.graph.replay()
        return self._loss.clone()

    def _add(self, packed: Packed, share: float) -> None:
        """Add one micro-batch's part of the loss and of the gradients."""
        key = (*(tensor.shape for tensor in packed.inputs.values()), packed.bounds.shape, packed.longest)
        replay = self.step.graphs.find(key, lambda: self._capture(packed))
        if replay is None:
            self.step.graphs.around(lambda: self._backward(packed, share, self.step.mark))
            if self.totals.reach():
                if len(self.step.graphs):  # they add to fewer totals
                    self.step.graphs.clear()
                self._addresses = self._blank()
            self._fill(self._addresses)
            self._sum(self._addresses)
            self.totals.drop_gradients()
            return
        assert replay.packed is not None
        assert replay.share is not None
        self.step.mark("whole")
        replay.packed.take(packed)
        replay.share.fill_(share)
        replay.graph.replay()

    def _backward(self, packed: Packed, share: Tensor | float, mark: Callable[[str], None] = unmarked) -> None:
        self.totals.drop_gradients()
        self.step.copies.begin(packed.inputs)
        mark("forward")
        loss = self.step.loss((packed, 1)) * share
        mark("backward")
        loss.backward()
        self.step.copies.finish()
        self.totals.fill_in()
        self._loss.add_(loss.detach())

    def _sum(self, addresses: Sequence[Tensor]) -> None:
        assert self.totals.addition is not None
        self.step.copies.resolve(addresses[-1])
        self.totals.addition(addresses[:-1])
        self.step.copies.clear()

    def _blank(self) -> list[Tensor]:
        assert self.totals.addition is not None
        return [*self.totals.addition.blank_addresses(), self.step.copies.blank_addresses()]

    def _fill(self, addresses: Sequence[Tensor]) -> None:
        assert self.totals.addition is not None
        self.totals.addition.fill_addresses(addresses[:-1])
        self.step.copies.fill_addresses(addresses[-1])

    def _capture(self, packed: Packed) -> Replay:
        mine, addresses = duplicate(packed), self._blank()
        self.step.copies.clear()  # of a step that was broken off: the graph would do it at every replay
        share = torch.ones((), device=self.step.device)

        def work() -> None:
            self._backward(mine, share)
            self._sum(addresses)

        graph, _ = self.step.graphs.capture(work)
        self._fill(addresses)
        self.totals.drop_gradients()
        return Replay(graph, mine, share, addresses)
