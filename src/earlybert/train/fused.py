"""Clip and AdamW in two passes over memory, on a GPU, with bf16 gradients and bf16 copies of the weights.

The arithmetic is that of `torch.nn.utils.clip_grad_norm_` and `torch.optim.AdamW`, in fp32. What it saves
is traffic: gradients are read as they are (bf16 or fp32), the clip factor is applied in passing, and the bf16
copy that the next forward pass reads is written along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

BLOCK = 2048
"""Elements one program handles."""
# A chunk's row in a table: addresses of the parameter, its two moments and its bf16 copy, its size, its kind.


@dataclass
class Slot:
    """One parameter to update, and where its gradient arrives.

    Attributes:
        master: fp32 parameter.
        leaf: The tensor whose `.grad` is this parameter's gradient: the master itself, or a bf16 copy.
        offset: Where the parameter begins in the leaf, in elements (a leaf may hold several).
        group: Index of its group in the optimizer.
        l1: Strength of an L1 term on it, whose gradient is not clipped.
    """

    master: nn.Parameter
    leaf: Tensor
    offset: int
    group: int
    l1: float = 0.0


@triton.jit
def _pointer(table, column, BF16: tl.constexpr):  # pyright: ignore
    """An address from a table as a pointer that loads and stores 16 bytes at a time."""
    if BF16:
        pointer = tl.load(table + column).to(tl.pointer_type(tl.bfloat16))
    else:
        pointer = tl.load(table + column).to(tl.pointer_type(tl.float32))
    return tl.multiple_of(pointer, 16)


@triton.jit
def _squares(  # pyright: ignore
    table, grads, clipped, partial, BLOCK: tl.constexpr, BF16: tl.constexpr, FULL: tl.constexpr
):
    chunk = tl.program_id(0).to(tl.int64)
    row = table + chunk * 6
    offsets = tl.arange(0, BLOCK)
    # A mask whose bound the compiler does not know would make every access four bytes wide.
    mask = None if FULL else offsets < tl.load(row + 4)
    other = None if FULL else 0.0
    g = tl.load(_pointer(grads, chunk, BF16) + offsets, mask=mask, other=other).to(tl.float32)
    tl.store(partial + chunk, tl.sum(g * g) * tl.load(clipped + tl.load(row + 5)))


@triton.jit
def _adamw(  # pyright: ignore
    table, grads, rates, decays, clipped, l1, square, limit, count, beta1, beta2, eps,
    BLOCK: tl.constexpr, BF16: tl.constexpr, FULL: tl.constexpr, COPY: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    row = table + chunk * 6
    offsets = tl.arange(0, BLOCK)
    mask = None if FULL else offsets < tl.load(row + 4)
    other = None if FULL else 0.0
    group = tl.load(row + 5)
    param, first, second = _pointer(row, 0, False), _pointer(row, 1, False), _pointer(row, 2, False)
    g = tl.load(_pointer(grads, chunk, BF16) + offsets, mask=mask, other=other).to(tl.float32)
    p = tl.load(param + offsets, mask=mask, other=other)
    m = tl.load(first + offsets, mask=mask, other=other)
    v = tl.load(second + offsets, mask=mask, other=other)
    scale = tl.minimum(limit / (tl.sqrt(tl.load(square)) + 1e-6), 1.0)
    g = g * (1.0 + tl.load(clipped + group) * (scale - 1.0))
    g += tl.load(l1 + group) * ((p > 0).to(tl.float32) - (p < 0).to(tl.float32))
    steps, rate = tl.load(count), tl.load(rates + group)
    p = p * (1.0 - rate * tl.load(decays + group))
    m = m + (1.0 - beta1) * (g - m)
    v = beta2 * v + (1.0 - beta2) * g * g
    size = rate / (1.0 - tl.exp(steps * tl.log(beta1)))
    root = tl.sqrt(1.0 - tl.exp(steps * tl.log(beta2)))
    p = p - size * m / (tl.sqrt(v) / root + eps)
    tl.store(param + offsets, p, mask=mask)
    tl.store(first + offsets, m, mask=mask)
    tl.store(second + offsets, v, mask=mask)
    if COPY:  # that the next forward pass reads
        shadow = _pointer(row, 3, BF16)
        tl.store(shadow + offsets, p.to(shadow.dtype.element_ty), mask=mask)


Kind = tuple[int, float]
"""Group of the optimizer, and strength of the L1 term."""


class _Table:
    """Chunks with one gradient dtype, all with a copy or none, all whole or all ends of parameters."""

    def __init__(self, chunks: Sequence[tuple[Slot, int]], optimizer: torch.optim.Optimizer, kinds: list[Kind]) -> None:
        self.chunks = chunks
        self.flags = _flags(*chunks[0])
        rows: list[list[int]] = []
        for slot, begin in chunks:
            state = optimizer.state[slot.master]
            tensors = (slot.master, state["exp_avg"], state["exp_avg_sq"])
            addresses = [tensor.data_ptr() + 4 * begin for tensor in tensors]
            shadow = slot.leaf.data_ptr() + slot.leaf.element_size() * (slot.offset + begin)
            size = min(BLOCK, slot.master.numel() - begin)
            rows.append([*addresses, shadow, size, kinds.index((slot.group, slot.l1))])
        self.rows = torch.tensor(rows, dtype=torch.int64, device=slot.master.device)

    def addresses(self) -> Tensor:
        """Where the gradients lie now, int64 `[chunks]`, on the CPU."""
        found: list[int] = []
        for slot, begin in self.chunks:
            grad = slot.leaf.grad
            assert grad is not None
            assert grad.is_contiguous()
            found.append(grad.data_ptr() + grad.element_size() * (slot.offset + begin))
        return torch.tensor(found, dtype=torch.int64)


def _flags(slot: Slot, begin: int) -> dict[str, bool]:
    return {
        "BF16": slot.leaf.dtype == torch.bfloat16,
        "COPY": slot.leaf is not slot.master,
        "FULL": begin + BLOCK <= slot.master.numel(),
    }


def _tables(slots: Sequence[Slot], optimizer: torch.optim.Optimizer, kinds: list[Kind]) -> list[_Table]:
    alike: dict[tuple[bool, ...], list[tuple[Slot, int]]] = {}
    for slot in slots:
        for begin in range(0, slot.master.numel(), BLOCK):
            alike.setdefault(tuple(_flags(slot, begin).values()), []).append((slot, begin))
    return [_Table(chunks, optimizer, kinds) for chunks in alike.values()]


class FusedAdamW:
    """Clip by global norm and AdamW for a `torch.optim.AdamW`, whose state it keeps using.

    Args:
        optimizer: Its groups' `lr` is read before every step; the group `"coefficients"` is not clipped.
        slots: Every parameter it holds.
        max_grad_norm: Largest norm of the gradient; None does not clip.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, slots: Sequence[Slot], max_grad_norm: float | None) -> None:
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        device = slots[0].master.device
        self._beta1, self._beta2 = optimizer.param_groups[0]["betas"]
        self._eps = optimizer.param_groups[0]["eps"]
        self.count = self._share_state(slots, device)
        self._kinds: list[Kind] = sorted({(slot.group, slot.l1) for slot in slots})
        groups = [optimizer.param_groups[index] for index, _ in self._kinds]
        self._rates = torch.zeros(len(groups), device=device)
        self._known = [0.0] * len(groups)
        self._l1 = torch.tensor([l1 for _, l1 in self._kinds], device=device, dtype=torch.float32)
        self._decays = torch.tensor([group["weight_decay"] for group in groups], device=device, dtype=torch.float32)
        self._clipped = torch.tensor([float(group.get("name") != "coefficients") for group in groups], device=device)
        self._square = torch.zeros((), device=device)
        self.tables = _tables(slots, optimizer, self._kinds)
        self._partial = torch.zeros(sum(len(table.rows) for table in self.tables), device=device)
        self._partials = self._partial.split([len(table.rows) for table in self.tables])

    def set_rates(self) -> None:
        """Bring the groups' learning rates to the device; outside a captured graph."""
        for index, (group, _) in enumerate(self._kinds):
            rate = float(self.optimizer.param_groups[group]["lr"])
            if rate != self._known[index]:
                self._rates[index].fill_(rate)
                self._known[index] = rate

    def blank_addresses(self) -> list[Tensor]:
        """Room for the addresses of a step's gradients, on the device."""
        return [torch.zeros(len(table.rows), dtype=torch.int64, device=table.rows.device) for table in self.tables]

    def fill_addresses(self, addresses: Sequence[Tensor]) -> None:
        """Note where the gradients lie now."""
        for table, tensor in zip(self.tables, addresses, strict=True):
            tensor.copy_(table.addresses())

    def step(self, addresses: Sequence[Tensor]) -> None:
        """One update from the gradients at `addresses`."""
        self.count.add_(1)
        limit = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        if self.max_grad_norm is not None:
            for table, grads, partial in zip(self.tables, addresses, self._partials, strict=True):
                _squares[(len(table.rows),)](
                    table.rows, grads, self._clipped, partial,
                    BLOCK=BLOCK, num_warps=8,
                    BF16=table.flags["BF16"], FULL=table.flags["FULL"],
                )  # fmt: skip
            torch.sum(self._partial, dim=0, out=self._square)
        for table, grads in zip(self.tables, addresses, strict=True):
            _adamw[(len(table.rows),)](
                table.rows, grads, self._rates, self._decays, self._clipped, self._l1, self._square, limit, self.count,
                self._beta1, self._beta2, self._eps,
                BLOCK=BLOCK, num_warps=8, **table.flags,
            )  # fmt: skip

    def _share_state(self, slots: Sequence[Slot], device: torch.device) -> Tensor:
        """Moments for every parameter, and one step count for all."""
        state: dict[Any, Any] = self.optimizer.state
        done = max((float(state[slot.master]["step"]) for slot in slots if slot.master in state), default=0.0)
        count = torch.full((), done, device=device, dtype=torch.float32)
        for slot in slots:
            entry = state[slot.master]
            entry["step"] = count
            for key in ("exp_avg", "exp_avg_sq"):
                if key not in entry:
                    entry[key] = torch.zeros_like(slot.master)
        return count
