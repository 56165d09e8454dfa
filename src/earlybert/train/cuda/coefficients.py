"""Coefficients on heads (Eq. 2) as a scaling of the columns of W_O: one launch before and one after a step.

Scaling activations would read and write them once more in every layer, forward and backward; the weights are smaller
than those from a few hundred tokens on, and known before the step begins, so that all layers go in one launch. For
BERT-base, 12 layers of 768 x 768:

    before: fp32 weights are read, scaled copies written         12 * 590k * (4 + 2)     bytes = 42 MB, 1 launch
    after:  gradients and weights are read, gradients written    12 * 590k * (2 + 4 + 2) bytes = 57 MB, 1 launch

together 0.03 ms at 3.35 TB/s. Scaling the activations of 32 x 128 tokens would be 12 layers * 4096 * 768 * (2 * 2 +
3 * 2) bytes = 378 MB in 24 launches; folding them in by autograd was 12 * 590k * 46 bytes = 326 MB in more than 100.
Coefficients on neurons (Eq. 3) cost neither: `kernels.bias_gelu` multiplies by them where it is anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

BLOCK = 2048
"""Weights one program scales."""


@triton.jit
def _scale(  # pyright: ignore
    table, heads, size, width, head_size, head_count, BLOCK: tl.constexpr, BF16: tl.constexpr
):
    layer = tl.program_id(1)
    row = table + layer.to(tl.int64) * 2
    source = tl.multiple_of(tl.load(row).to(tl.pointer_type(tl.float32)), 16)
    if BF16:
        target = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(tl.bfloat16)), 16)
    else:
        target = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(tl.float32)), 16)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    head = (place % width) // head_size
    c = tl.load(heads + layer * head_count + head, mask=inside, other=0.0)
    w = tl.load(source + place, mask=inside, other=0.0)
    tl.store(target + place, (w * c).to(target.dtype.element_ty), mask=inside)


@triton.jit
def _unscale(  # pyright: ignore
    table, grads, heads, heads_grad, rows, width, head_size, head_count,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BF16: tl.constexpr,
):  # fmt: skip
    head, layer = tl.program_id(0), tl.program_id(1)
    weight = tl.multiple_of(tl.load(table + layer.to(tl.int64) * 2).to(tl.pointer_type(tl.float32)), 16)
    if BF16:
        grad = tl.multiple_of(tl.load(grads + layer).to(tl.pointer_type(tl.bfloat16)), 16)
    else:
        grad = tl.multiple_of(tl.load(grads + layer).to(tl.pointer_type(tl.float32)), 16)
    c = tl.load(heads + layer * head_count + head)
    column = tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for at in range(0, rows, ROWS):
        row = at + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < head_size)[None, :]
        place = row[:, None] * width + head * head_size + column[None, :]
        g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        total += g * tl.load(weight + place, mask=inside, other=0.0)
        tl.store(grad + place, (g * c).to(grad.dtype.element_ty), mask=inside)
    tl.store(heads_grad + layer * head_count + head, tl.sum(total))


class ScaledOutputs:
    """Copies of every layer's W_O with columns scaled by the coefficients of their heads.

    Args:
        heads: fp32 parameter `[layers, heads]`.
        masters: The layers' W_O, fp32 `[hidden, heads * head size]`, all of one shape.
        leaves: The copies the model computes with, of the same shapes, bf16 or fp32.

    Attributes:
        gradient: Of the coefficients, fp32 `[layers, heads]`, after `unscale`.
    """

    def __init__(self, heads: nn.Parameter, masters: Sequence[nn.Parameter], leaves: Sequence[Tensor]) -> None:
        self.heads = heads
        self.leaves = leaves
        self.gradient = torch.zeros_like(heads)
        rows = [[master.data_ptr(), leaf.data_ptr()] for master, leaf in zip(masters, leaves, strict=True)]
        self._table = torch.tensor(rows, dtype=torch.int64, device=heads.device)
        self._bf16 = leaves[0].dtype == torch.bfloat16

    def scale(self) -> None:
        """Write the copies anew; before every step."""
        rows, width = self.leaves[0].shape
        layers, count = self.heads.shape
        _scale[(triton.cdiv(rows * width, BLOCK), layers)](
            self._table, self.heads, rows * width, width, width // count, count,
            BLOCK=BLOCK, BF16=self._bf16, num_warps=8,
        )  # fmt: skip

    def blank_addresses(self) -> Tensor:
        """Room for the addresses of the copies' gradients, on the device."""
        return torch.zeros(len(self.leaves), dtype=torch.int64, device=self.heads.device)

    def fill_addresses(self, addresses: Tensor) -> None:
        """Note where the gradients lie now."""
        grads = [leaf.grad for leaf in self.leaves]
        addresses.copy_(torch.tensor([grad.data_ptr() for grad in grads if grad is not None], dtype=torch.int64))

    def unscale(self, addresses: Tensor) -> None:
        """Turn the copies' gradients into those of W_O, in place, and write that of the coefficients.

        Once a step, after its last backward pass.

        Args:
            addresses: Of the copies' gradients.
        """
        rows, width = self.leaves[0].shape
        layers, count = self.heads.shape
        size = width // count
        _unscale[(count, layers)](
            self._table, addresses, self.heads, self.gradient, rows, width, size, count,
            ROWS=32, COLUMNS=triton.next_power_of_2(size), BF16=self._bf16, num_warps=4,
        )  # fmt: skip
