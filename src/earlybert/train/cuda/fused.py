"""What the fused optimizers of a GPU share: tables of parameters, the clip, and gradients that are added up.

The arithmetic of the clip is that of `torch.nn.utils.clip_grad_norm_`, in fp32. What is saved
is traffic: gradients are read as they are (bf16 or fp32), the clip factor is applied in passing, and the bf16
copy that the next forward pass reads is written along.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

BLOCK = 2048
"""Elements one program handles: a piece."""
# A piece's row in a table: addresses of the parameter, its two moments and its copy, its size, its kind,
# its parameter's slot, its own place among the pieces of all parameters, slot by slot.


@dataclass
class Slot:
    """One parameter to update, and where its gradient arrives.

    Attributes:
        master: fp32 parameter.
        leaf: The tensor whose `.grad` is this parameter's gradient: the master itself, or a bf16 copy.
        offset: Where the parameter begins in the leaf, in elements (a leaf may hold several).
        group: Index of its group in the optimizer.
        l1: Strength of an L1 term on it, whose gradient is not clipped.
        total: fp32 sum of its gradients over micro-batches, shaped like the master, where they are summed: the
            optimizer then reads this instead of the leaf's.
    """

    master: nn.Parameter
    leaf: Tensor
    offset: int
    group: int
    l1: float = 0.0
    total: Tensor | None = None

    def arrived(self) -> tuple[Tensor, int]:
        """The gradient that backward left, and where in it this parameter's begins."""
        assert self.leaf.grad is not None
        return self.leaf.grad, self.offset

    def gradient(self) -> tuple[Tensor, int]:
        """What the optimizer reads, and where in it this parameter's begins."""
        return (self.total, 0) if self.total is not None else self.arrived()

    @property
    def half(self) -> bool:
        """Whether the leaf is in bf16."""
        return self.leaf.dtype == torch.bfloat16

    @property
    def copied(self) -> bool:
        """Whether the leaf is a copy."""
        return self.leaf is not self.master


class Pieces:
    """What one launch of a kernel handles: pieces of parameters, all whole or all ends.

    Args:
        slots: Of all parameters.
        chosen: Which of them, by number.
        full: Whether to take whole pieces, or what is left at the ends.

    Attributes:
        slot: Number of each piece's slot, int64 `[pieces]`, as all of these on the CPU.
        begin: Where it begins in its parameter, in elements.
        size: Its elements.
        place: Its place among the pieces of all slots.
    """

    def __init__(self, slots: Sequence[Slot], chosen: Sequence[int], *, full: bool) -> None:
        self.slots, self.full = slots, full
        sizes = torch.tensor([slots[number].master.numel() for number in chosen])
        whole = sizes // BLOCK
        counts = whole if full else (sizes % BLOCK > 0).long()
        self.slot = torch.tensor(chosen).repeat_interleave(counts)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts)
        number = torch.arange(len(self.slot)) - first if full else whole.repeat_interleave(counts)
        self.begin = number * BLOCK
        self.size = (sizes.repeat_interleave(counts) - self.begin).clamp_max(BLOCK)
        self.place = starts(slots)[self.slot] + number

    def __len__(self) -> int:
        return len(self.slot)

    def addresses(self, of: Callable[[Slot], tuple[Tensor, int]]) -> Tensor:
        """Where each piece begins in a tensor of its slot that its parameter has from an offset on."""
        bases = torch.zeros(len(self.slots), dtype=torch.int64)
        width = 0
        for number in self.slot.unique().tolist():
            tensor, offset = of(self.slots[number])
            assert tensor.is_contiguous()
            width = tensor.element_size()
            bases[number] = tensor.data_ptr() + width * offset
        return bases[self.slot] + width * self.begin


def starts(slots: Sequence[Slot]) -> Tensor:
    """The place of each slot's first piece, and behind them the number of pieces: int64 `[slots + 1]`."""
    counts = [0, *(-(-slot.master.numel() // BLOCK) for slot in slots)]
    return torch.tensor(counts).cumsum(0)


def pieces(slots: Sequence[Slot], kind: Callable[[Slot], Any]) -> list[tuple[Any, Pieces]]:
    """All pieces, those of one kind of slot apart from the others, and whole ones from ends."""
    kinds: dict[Any, list[int]] = {}
    for number, slot in enumerate(slots):
        kinds.setdefault(kind(slot), []).append(number)
    found = [(key, Pieces(slots, chosen, full=full)) for key, chosen in kinds.items() for full in (True, False)]
    return [(key, part) for key, part in found if len(part)]


@triton.jit
def pointer(table, column, BF16: tl.constexpr):  # pyright: ignore
    """An address from a table as a pointer that loads and stores 16 bytes at a time."""
    if BF16:
        found = tl.load(table + column).to(tl.pointer_type(tl.bfloat16))
    else:
        found = tl.load(table + column).to(tl.pointer_type(tl.float32))
    return tl.multiple_of(found, 16)


@triton.jit
def _squares(  # pyright: ignore
    table, grads, clipped, partial, BLOCK: tl.constexpr, HALF: tl.constexpr, FULL: tl.constexpr
):
    piece = tl.program_id(0).to(tl.int64)
    row = table + piece * 8
    offsets = tl.arange(0, BLOCK)
    # A mask whose bound the compiler does not know would make every access four bytes wide.
    mask = None if FULL else offsets < tl.load(row + 4)
    other = None if FULL else 0.0
    g = tl.load(pointer(grads, piece, HALF) + offsets, mask=mask, other=other).to(tl.float32)
    tl.store(partial + piece, tl.sum(g * g) * tl.load(clipped + tl.load(row + 5)))


@triton.jit
def clip(g, p, kind, clipped, l1, square, limit):  # pyright: ignore
    """A gradient after clipping, with that of the L1 term."""
    scale = tl.minimum(limit / (tl.sqrt(tl.load(square)) + 1e-6), 1.0)
    g = g * (1.0 + tl.load(clipped + kind) * (scale - 1.0))
    return g + tl.load(l1 + kind) * ((p > 0).to(tl.float32) - (p < 0).to(tl.float32))


@triton.jit
def write_copy(row, offsets, p, mask, HALF: tl.constexpr):  # pyright: ignore
    """Write the copy that the next forward pass reads."""
    shadow = pointer(row, 3, HALF)
    tl.store(shadow + offsets, p.to(shadow.dtype.element_ty), mask=mask)


@triton.jit
def _accumulate(table, grads, BLOCK: tl.constexpr, HALF: tl.constexpr, FULL: tl.constexpr):  # pyright: ignore
    piece = tl.program_id(0).to(tl.int64)
    row = table + piece * 2
    offsets = tl.arange(0, BLOCK)
    mask = None if FULL else offsets < tl.load(row + 1)
    other = None if FULL else 0.0
    total = pointer(row, 0, False) + offsets
    g = tl.load(pointer(grads, piece, HALF) + offsets, mask=mask, other=other).to(tl.float32)
    tl.store(total, tl.load(total, mask=mask, other=other) + g, mask=mask)


class Launches:
    """Kernels that read gradients where they lie.

    Attributes:
        tables: A launch for each; `addresses()` says where the gradients lie now, int64 `[pieces]`, on the CPU.
        device: Of the gradients.
    """

    tables: Sequence[Any]
    device: torch.device

    def blank_addresses(self) -> list[Tensor]:
        """Room for the addresses of a step's gradients, on the device."""
        return [torch.zeros(len(table.rows), dtype=torch.int64, device=self.device) for table in self.tables]

    def fill_addresses(self, addresses: Sequence[Tensor]) -> None:
        """Note where the gradients lie now."""
        for table, tensor in zip(self.tables, addresses, strict=True):
            tensor.copy_(table.addresses())


class Addition(Launches):
    """Adds the gradients that backward left to the sums of their slots.

    Args:
        slots: With a `total` each. Of two with one total, one must be a copy and the other not.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.device = slots[0].master.device
        self.tables = [_Sums(part, half) for (half, _), part in pieces(slots, lambda slot: (slot.half, slot.copied))]

    def __call__(self, addresses: Sequence[Tensor]) -> None:
        """Add once, from the gradients at `addresses`."""
        for table, grads in zip(self.tables, addresses, strict=True):
            _accumulate[(len(table.rows),)](
                table.rows, grads, BLOCK=BLOCK, HALF=table.half, FULL=table.part.full, num_warps=8
            )


class _Sums:
    """Where pieces with one dtype of gradients are summed: int64 `[pieces, 2]`, address and size."""

    def __init__(self, part: Pieces, half: bool) -> None:
        self.part, self.half = part, half
        rows = torch.stack([part.addresses(lambda slot: (_total(slot), 0)), part.size], dim=1)
        self.rows = rows.to(part.slots[0].master.device)

    def addresses(self) -> Tensor:
        return self.part.addresses(Slot.arrived)


def _total(slot: Slot) -> Tensor:
    assert slot.total is not None
    return slot.total


Kind = tuple[int, float]
"""Group of the optimizer, and strength of the L1 term."""


class Table:
    """What an optimizer's kernels read of pieces that are alike.

    Args:
        part: The pieces.
        optimizer: With moments for all of them.
        kinds: Of all slots; the kernels' vectors have an entry for each.

    Attributes:
        rows: int64 `[pieces, 8]` on the device.
        reading: Constants of kernels that read gradients.
        writing: Constants of kernels that write parameters.
    """

    def __init__(self, part: Pieces, optimizer: torch.optim.Optimizer, kinds: list[Kind]) -> None:
        self.part = part
        first = part.slots[int(part.slot[0])]
        self.reading = {"HALF": first.half and first.total is None, "FULL": part.full}
        self.writing = {"COPY": first.copied, "HALF_COPY": first.half, "FULL": part.full}
        numbers = torch.tensor([kinds.index((slot.group, slot.l1)) for slot in part.slots])
        state: dict[Any, Any] = optimizer.state
        columns = [
            part.addresses(lambda slot: (slot.master, 0)),
            part.addresses(lambda slot: (state[slot.master]["exp_avg"], 0)),
            part.addresses(lambda slot: (state[slot.master]["exp_avg_sq"], 0)),
            part.addresses(lambda slot: (slot.leaf, slot.offset)),
            part.size,
            numbers[part.slot],
            part.slot,
            part.place,
        ]
        self.rows = torch.stack(columns, dim=1).to(first.master.device)

    def addresses(self) -> Tensor:
        """Where the gradients lie now, int64 `[pieces]`, on the CPU."""
        return self.part.addresses(Slot.gradient)


class Fused(Launches, ABC):
    """What fused optimizers share: clipping by global norm, learning rates on the device, the optimizer's own state.

    Args:
        optimizer: Its groups' `lr` is read before every step; the group `"coefficients"` is not clipped.
        slots: Every parameter it is to update, each once.
        max_grad_norm: Largest norm of the gradient; None does not clip.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, slots: Sequence[Slot], max_grad_norm: float | None) -> None:
        self.optimizer = optimizer
        self.slots = slots
        self.limit = float("inf") if max_grad_norm is None else max_grad_norm
        self.device = device = slots[0].master.device
        self.beta1, self.beta2 = optimizer.param_groups[0]["betas"]
        self.eps = optimizer.param_groups[0]["eps"]
        self.kinds: list[Kind] = sorted({(slot.group, slot.l1) for slot in slots})
        groups = [optimizer.param_groups[number] for number, _ in self.kinds]
        self.rates = torch.zeros(len(groups), device=device)
        self._known = [0.0] * len(groups)
        self.l1 = torch.tensor([l1 for _, l1 in self.kinds], device=device, dtype=torch.float32)
        self.decays = torch.tensor([group["weight_decay"] for group in groups], device=device, dtype=torch.float32)
        self.clipped = torch.tensor([float(group.get("name") != "coefficients") for group in groups], device=device)
        self.square = torch.zeros((), device=device)
        state: dict[Any, Any] = optimizer.state
        for slot in slots:
            for key in ("exp_avg", "exp_avg_sq"):
                if key not in state[slot.master]:
                    state[slot.master][key] = torch.zeros_like(slot.master)
        alike = pieces(slots, lambda slot: (slot.half, slot.copied, slot.total is None))
        self.tables = [Table(part, optimizer, self.kinds) for _, part in alike]
        self._partial = torch.zeros(sum(len(table.rows) for table in self.tables), device=device)
        self._partials = self._partial.split([len(table.rows) for table in self.tables])

    def set_rates(self) -> None:
        """Bring the groups' learning rates to the device; outside a captured graph."""
        for index, (group, _) in enumerate(self.kinds):
            rate = float(self.optimizer.param_groups[group]["lr"])
            if rate != self._known[index]:
                self.rates[index].fill_(rate)
                self._known[index] = rate

    @abstractmethod
    def step(self, addresses: Sequence[Tensor]) -> None:
        """One update from the gradients at `addresses`."""

    def measure(self, addresses: Sequence[Tensor]) -> None:
        """Work out the square of the norm that gradients are clipped by."""
        if self.limit == float("inf"):
            return
        for table, grads, partial in zip(self.tables, addresses, self._partials, strict=True):
            _squares[(len(table.rows),)](
                table.rows, grads, self.clipped, partial, BLOCK=BLOCK, num_warps=8, **table.reading
            )
        torch.sum(self._partial, dim=0, out=self.square)

    def count_of(self, slots: Sequence[Slot]) -> Tensor:
        """One step count for these parameters, fp32 scalar on the device: the one they share already, or a new one."""
        state: dict[Any, Any] = self.optimizer.state
        known = [state[slot.master]["step"] for slot in slots if "step" in state[slot.master]]
        shared = isinstance(known[0], Tensor) and known[0].device == self.device if known else False
        if len(known) == len(slots) and shared and all(count is known[0] for count in known):
            return known[0]
        done = max(map(float, known), default=0.0)
        count = torch.full((), done, device=self.device, dtype=torch.float32)
        for slot in slots:
            state[slot.master]["step"] = count
        return count
