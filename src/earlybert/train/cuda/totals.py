"""Gradients of many micro-batches in fp32 sums, and the update from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ..lamb import Lamb
from .fused import Addition, Fused, Slot
from .fused_adamw import FusedAdamW
from .fused_lamb import FusedLamb

APART = 64
"""Sums begin at multiples of so many elements, so that kernels may read 16 bytes at a time."""


def fused(optimizer: torch.optim.Optimizer, slots: Sequence[Slot], max_grad_norm: float | None) -> Fused:
    """The kernels of an AdamW or a `Lamb`."""
    kind = FusedLamb if isinstance(optimizer, Lamb) else FusedAdamW
    return kind(optimizer, slots, max_grad_norm)


class Totals:
    """One fp32 sum for every parameter: 4 bytes each.

    A parameter that no backward pass reaches has no sum, and is left alone by the update, as `torch.optim` leaves
    those without a gradient alone.

    Args:
        slots: Everywhere that gradients may arrive; a parameter may have several slots, whose gradients are added up
            (a vocabulary projection that is tied to the embeddings: fp32 from the one, bf16 from the other).
        optimizer: An AdamW or a `Lamb`.
        max_grad_norm: Largest norm of the gradient, the coefficients left out; None does not clip.
    """

    def __init__(self, slots: Sequence[Slot], optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> None:
        self.optimizer, self.max_grad_norm = optimizer, max_grad_norm
        masters = {id(slot.master): slot.master for slot in slots}
        sizes = [-(-master.numel() // APART) * APART for master in masters.values()]
        device = slots[0].master.device
        self.flat = torch.zeros(sum(sizes), dtype=torch.float32, device=device)
        """All sums behind one another."""
        parts = self.flat.split(sizes)
        totals = {
            key: part[: master.numel()].view_as(master)
            for (key, master), part in zip(masters.items(), parts, strict=True)
        }
        self.slots = [replace(slot, total=totals[id(slot.master)]) for slot in slots]
        self._reached: list[Slot] = []
        self._update: tuple[Fused, list[Tensor]] | None = None
        self.addition: Addition | None = None
        """Of the gradients of one micro-batch; there once `reach` has been called."""

    def clear(self) -> None:
        """Begin a step."""
        self.flat.zero_()

    def drop_gradients(self) -> None:
        """Let go of what backward left."""
        for slot in self.slots:
            slot.leaf.grad = None

    def reach(self) -> bool:
        """See, after a backward pass, where gradients arrive; whether that is more than was known.

        What was captured before is of no use then.
        """
        known = {id(slot) for slot in self._reached}
        found = [slot for slot in self.slots if slot.leaf.grad is not None or id(slot) in known]
        if len(found) == len(known):
            return False
        self._reached, self._update = found, None
        self.addition = Addition(found)
        return True

    def fill_in(self) -> None:
        """Zeros where a gradient arrived before and did not this time."""
        for slot in self._reached:
            if slot.leaf.grad is None:
                slot.leaf.grad = torch.zeros_like(slot.leaf)

    @contextmanager
    def as_gradients(self) -> Iterator[None]:
        """Parameters have their sums as gradients inside."""
        for slot in self._reached:
            slot.master.grad = slot.total
        yield
        for slot in self._reached:
            slot.master.grad = None

    def set_rates(self) -> None:
        """Bring the groups' learning rates to the device; outside a captured graph."""
        self._fused()[0].set_rates()

    def update(self) -> None:
        """Clip, and take the optimizer's step."""
        update, addresses = self._fused()
        update.step(addresses)

    def _fused(self) -> tuple[Fused, list[Tensor]]:
        """The optimizer, and where the sums lie. A parameter with several slots is written to its bf16 copy."""
        if self._update is None:
            once: dict[int, Slot] = {}
            for slot in sorted(self._reached, key=lambda slot: not slot.half):  # stable: copies first
                once.setdefault(id(slot.master), slot)
            update = fused(self.optimizer, list(once.values()), self.max_grad_norm)
            addresses = update.blank_addresses()
            update.fill_addresses(addresses)
            self._update = update, addresses
        return self._update
