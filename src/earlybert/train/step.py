"""One optimizer step, the plain way: the reference every faster one is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..anatomy import Refused
from ..tasks.batches import IGNORED, Batch, shape_of
from ..ticket import Gates
from .losses import SPAN, loss_of, span_loss
from .precision import autocast
from .ranks import ALONE, Ranks

SHIFTED = ("ForCausalLM", "LMHeadModel")
"""Ends of the names of models that predict the next token."""


class EagerStep:
    """Forward, backward, L1, clip, update.

    Args:
        model: Returns an output with `.loss` when labels are in the batch.
        optimizer: Over its parameters, and those of `gates`.
        precision: Of the forward pass.
        max_grad_norm: Gradients of the model are clipped to this norm. Coefficients are left out:
            their L1 part alone would use the budget up.
        gates: Coefficients that are being searched.
        l1: lambda of Eq. 4 for heads and for neurons.
        ranks: The processes of the job. They are given the same micro-batches, and each takes every n-th row of them;
            the update is that of one process.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        precision: Literal["bf16", "no"] = "no",
        max_grad_norm: float | None = 1.0,
        gates: Gates | None = None,
        l1: tuple[float, float] = (0.0, 0.0),
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.precision: Literal["bf16", "no"] = precision
        self.max_grad_norm = max_grad_norm
        self.gates = gates
        self.l1 = l1
        self.ranks = ranks
        self.mark: Callable[[str], None] = unmarked
        """Told which part of a step begins; `train.profile` listens."""
        self.aim: Callable[[Any], Tensor] | None = None
        """Given a prepared micro-batch, behind its task loss: a mean over its tokens to be added to that
        (`train.matching`)."""
        self.follow(next(model.parameters()).device)

    def follow(self, device: torch.device) -> None:
        """Compute on this device, with the parameters that the model has now."""
        self.device = device
        self.clipped = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def feeds(self) -> int:
        """How many processes bring micro-batches of their own, as large as these; one where all are given the same."""
        return 1

    def splits(self, prepared: Sequence[Any]) -> bool:
        """Whether this step would tell its parts apart."""
        return True

    def reading(self, model: nn.Module) -> EagerStep:
        """This step on another model, whose forward passes take the same prepared batches."""
        other = copy(self)
        other.model, other.gates, other.aim = model, None, None
        return other

    def tokens(self, states: Tensor, batch: Any) -> Tensor:
        """Of hidden states as the model computes them, those of tokens, `[tokens, hidden]`."""
        return states[batch[0]["attention_mask"].bool()]

    def count_tokens(self, batch: Any) -> int:
        """How many tokens a prepared micro-batch has."""
        return int(batch[0]["attention_mask"].sum())

    def count_labels(self, batch: Batch) -> int:
        """How many labels the model's loss on a micro-batch is a mean of."""
        return labels_of(batch, shifted=type(self.model).__name__.endswith(SHIFTED))

    def refresh(self) -> None:
        """Read the parameters and the optimizer's state anew, after something else has changed them."""

    def prepare(self, micro_batches: Sequence[Batch]) -> Sequence[tuple[Any, float]]:
        """Bring a step's data to the device, each with its weight (`mine`); not part of the step's time."""
        return [(to_device(batch, self.device), weight) for batch, weight in self.mine(micro_batches)]

    def mine(self, micro_batches: Sequence[Batch]) -> list[tuple[Batch, float]]:
        """What this process computes of a step.

        Args:
            micro_batches: Of the whole step, the same in every process.

        Returns:
            Micro-batches, each with the number of its labels; of several processes, with its share of the labels of
            all. One that no labels are left for gets a micro-batch that counts nothing, so that it has gradients to
            add as the others do.

        Raises:
            Refused: There are several processes, and no label counts.
        """
        if self.ranks.world == 1:
            return [(batch, self.count_labels(batch)) for batch in micro_batches]
        counts = [self.count_labels(batch) for batch in micro_batches]
        shares, total = by_labels(counts), sum(counts)
        parts = [every(batch, self.ranks.rank, self.ranks.world) for batch in micro_batches]
        found = [(part, self.count_labels(part) / total) for part in parts]
        return [each for each in found if each[1]] or [(micro_batches[shares.index(max(shares))], 0.0)]

    def shapes(self, micro_batches: Sequence[Batch]) -> list[tuple[int, int]]:
        """Rows and length of everything this step computes on, for counting FLOPs."""
        return [shape_of(batch) for batch in micro_batches]

    def loss(self, batch: Any) -> Tensor:
        """Task loss of one prepared micro-batch, scalar.

        Raises:
            Refused: The model gives no loss.
        """
        inputs = dict(batch[0])
        positions = {name: inputs.pop(name) for name in SPAN if name in inputs}
        with autocast(self.precision, self.device):
            output: Any = self.model(**inputs)
            return span_loss(output, positions, present(inputs).bool()) if positions else loss_of(output)

    def shares(self, prepared: Sequence[tuple[Any, float]]) -> list[float]:
        """How much of the step's mean loss each micro-batch is."""
        weights = [weight for _, weight in prepared]
        return by_labels(weights) if self.ranks.world == 1 else weights

    def __call__(self, prepared: Sequence[tuple[Any, float]]) -> Tensor:
        """Update once from all prepared micro-batches together.

        Each counts by its number of labels, and what is aimed at besides by its tokens, so that the gradient is that
        of one large batch. The L1 term is added once a step, not once a micro-batch.

        Returns:
            The task loss L_0 of Eq. 4, fp32 scalar, detached, still on the device.
        """
        self.mark("optimizer")
        self.clear()
        shares = zip(prepared, self.shares(prepared), strict=True)
        # Alone: without a label a mean loss is not a number.
        counted = [(batch, share) for batch, share in shares if share or self.ranks.world > 1]
        tokens = self._by_tokens(counted)
        total: Tensor | None = None
        for number, (batch, share) in enumerate(counted, start=1):
            self.begin(last=number == len(counted))
            self.mark("forward")
            loss = self.loss(batch)
            if share != 1.0:
                loss = loss * share
            whole = loss if self.aim is None else loss + self.aim(batch) * tokens[number - 1]
            self.mark("backward")
            whole.backward()
            total = loss.detach() if total is None else total + loss.detach()
        self.mark("optimizer")
        assert total is not None
        total = self.combine(total.float())
        if self.gates is not None:
            self.gates.add_l1(self.l1)
        if self.max_grad_norm is not None:
            self.clip(self.max_grad_norm)
        self.optimizer.step()
        return total

    def _by_tokens(self, counted: Sequence[tuple[Any, float]]) -> list[float]:
        """How much of the step's tokens each micro-batch has, where that is asked for."""
        if self.aim is None or (len(counted) == 1 and self.ranks.world == 1):
            return [1.0] * len(counted)
        counts = [self.count_tokens(batch) if share else 0 for batch, share in counted]
        (total,) = self.ranks.totals([sum(counts)])
        return [count / total for count in counts]

    def clear(self) -> None:
        """Forget the gradients of the step before."""
        self.optimizer.zero_grad(set_to_none=True)

    def begin(self, *, last: bool) -> None:
        """A micro-batch comes, the last of its step or not."""

    def clip(self, most: float) -> None:
        """Scale the model's gradients so that their norm is at most `most`."""
        nn.utils.clip_grad_norm_(self.clipped, most)

    def combine(self, loss: Tensor) -> Tensor:
        """Sum gradients and loss over all processes: each has weighed its own by the labels of all."""
        if self.ranks.world > 1:
            params = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
            self.ranks.add([*(parameter.grad for parameter in params if parameter.grad is not None), loss])
        return loss


def unmarked(part: str) -> None:
    """Nobody listens."""


def every(batch: Batch, first: int, step: int) -> Batch:
    """Rows `first`, `first + step`, ... of a batch."""
    return {name: tensor[first::step].contiguous() for name, tensor in batch.items()}


def by_labels(counts: Sequence[float]) -> list[float]:
    """Counts as shares of their sum.

    Raises:
        Refused: All are zero.
    """
    total = sum(counts)
    if total == 0:
        raise Refused(f"no label of this step counts: all of them are {IGNORED}; leave such batches out.")
    return [count / total for count in counts]


def labels_of(batch: Batch, *, shifted: bool = False) -> int:
    """Labels that count in a batch.

    Args:
        batch: With `labels`, or the positions of answers, or neither: then its rows count.
        shifted: Whether each place is to say the label of the next one, so that the first label of a row is nobody's.
    """
    labels = batch.get("labels")
    if labels is None:
        positions = [batch[name] for name in SPAN if name in batch]
        rows = len(next(iter(batch.values())))
        return sum(int((each != IGNORED).sum()) for each in positions) if positions else rows
    labels = labels[:, 1:] if shifted and labels.dim() == 2 else labels
    return labels.numel() if labels.is_floating_point() else int((labels != IGNORED).sum())


def present(batch: Batch) -> Tensor:
    """The attention mask of a batch `[rows, length]`; without one, all places are attended to, as by the model."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with all its tensors on `device`."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
