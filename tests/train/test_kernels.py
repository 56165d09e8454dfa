"""Triton kernels against torch in float64, and the step made of them against the eager one, with and without a GPU."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from earlybert.train.optimizer import adamw
from earlybert.train.step import EagerStep
from tests.train.conftest import DEVICE, graphed, needs_triton
from tests.train.test_fast import batch_of, build

needs_triton()
pytestmark = pytest.mark.usefixtures("quick")

SHAPES = [(1, 48), (7, 1), (7, 100), (33, 48), (3, 768)]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE).bfloat16()


def leaves(*tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The same for the kernel and, in float64, for torch."""
    return [t.clone().requires_grad_() for t in tensors], [t.double().requires_grad_() for t in tensors]


def agree(ours: list[Tensor], exact: list[Tensor], out: Tensor, true: Tensor) -> None:
    """Output and gradients are as near to the truth as bf16 can say."""
    grad = normal(*out.shape)
    out.backward(grad)
    true.backward(grad.double())
    for mine, theirs in [(out, true), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]:
        assert mine is not None
        assert theirs is not None
        assert torch.isfinite(mine).all()
        assert (mine.double() - theirs).norm() <= 0.006 * theirs.norm() + 1e-6


def as_bf16(x: Tensor) -> Tensor:
    """fp32 as a kernel stores it: a GPU rounds to the nearest, the interpreter cuts off."""
    return (x if DEVICE == "cuda" else (x.detach().view(torch.int32) & -65536).view(torch.float32)).bfloat16()


def kept(shape: tuple[int, ...], seed: int, p: float) -> Tensor:
    """What dropout keeps, computed another way: MurmurHash3's last step of the index and the seed."""
    with np.errstate(over="ignore"):
        h = np.arange(np.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(seed)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        h ^= h >> np.uint32(16)
    return torch.from_numpy(h.astype(np.int64) >= int(p * 2**32)).reshape(shape).to(DEVICE)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_add_norm(rows: int, width: int, p: float) -> None:
    from earlybert.train.kernels import add_norm

    torch.manual_seed(0)
    ours, exact = leaves(normal(1, rows, width), normal(width), normal(1, rows, width), normal(width), normal(width))
    out = add_norm(*ours, p=p, eps=0.1, seeds=torch.tensor([3, 2**31 - 1], device=DEVICE), which=1)
    keep = kept((1, rows, width), 2**31 - 1, p)
    added = torch.where(keep, (exact[0] + exact[1]) / (1 - p), 0.0) + exact[2]
    agree(ours, exact, out, F.layer_norm(added, (width,), exact[3], exact[4], 0.1))


def test_add_norm_without_a_bias() -> None:
    from earlybert.train.kernels import add_norm

    ours, exact = leaves(normal(1, 7, 48), normal(1, 7, 48), normal(48), normal(48))
    out = add_norm(ours[0], None, *ours[1:], p=0.0, eps=1e-12, seeds=torch.zeros(1, device=DEVICE).long(), which=0)
    agree(ours, exact, out, F.layer_norm(exact[0] + exact[1], (48,), exact[2], exact[3], 1e-12))


def test_dropout_rate_independence_and_the_same_mask_backward() -> None:
    from earlybert.train.kernels import add_norm

    ones = torch.ones(1, 32, 8192, device=DEVICE, dtype=torch.bfloat16)
    weight, seeds = torch.ones(8192, device=DEVICE, dtype=torch.bfloat16), torch.tensor([5, 6], device=DEVICE)
    masks = []
    for which in (0, 1):
        y, zero = ones.clone().requires_grad_(), torch.zeros_like(ones).requires_grad_()
        out = add_norm(y, None, zero, weight, torch.zeros_like(weight), p=0.1, eps=1e-12, seeds=seeds, which=which)
        out.backward(torch.randn_like(out))
        dropped = out < 0
        assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.003)
        assert y.grad is not None
        assert torch.equal(y.grad == 0, dropped)
        masks.append(dropped.flatten().float())
    assert abs(torch.corrcoef(torch.stack(masks))[0, 1].item()) < 0.01


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_bias_gelu(rows: int, width: int) -> None:
    from earlybert.train.kernels import bias_gelu

    torch.manual_seed(0)
    ours, exact = leaves(normal(1, rows, width), normal(width))
    agree(ours, exact, bias_gelu(ours[0], ours[1]), F.gelu(exact[0] + exact[1]))


def test_every_tiling_of_the_gelu_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from earlybert.train import kernels

    found = []
    y, bias, grad = normal(1, 37, 300), normal(300), normal(1, 37, 300)
    for tiling in kernels.TILINGS:
        monkeypatch.setattr(kernels._bias_gelu_backward, "configs", [tiling])
        ours = [y.clone().requires_grad_(), bias.clone().requires_grad_()]
        kernels.bias_gelu(ours[0], ours[1]).backward(grad)
        found.append(ours)
    for ours in found[1:]:
        torch.testing.assert_close(ours[0].grad, found[0][0].grad)
        torch.testing.assert_close(ours[1].grad, found[0][1].grad)


def test_clip_and_adamw_against_torch() -> None:
    """The optimizer alone, on the same gradients: fp32 and bf16, decay, clipping, coefficients left out."""
    from earlybert.train.fused import FusedAdamW, Slot

    torch.manual_seed(0)
    sizes = ((300, 70), (5000,), (3,))
    masters = [torch.nn.Parameter(torch.randn(size, device=DEVICE)) for size in sizes]
    copies = [torch.nn.Parameter(p.detach().clone()) for p in masters]
    leaf = torch.nn.Parameter(masters[0].detach().bfloat16())

    def groups(ps: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
        return [
            {"params": ps[:2], "lr": 1e-2, "weight_decay": 0.1},
            {"name": "coefficients", "params": ps[2:], "lr": 3e-2, "weight_decay": 0.0},
        ]

    ours, reference = torch.optim.AdamW(groups(masters)), torch.optim.AdamW(groups(copies))
    slots = [Slot(masters[0], leaf, 0, 0), Slot(masters[1], masters[1], 0, 0), Slot(masters[2], masters[2], 0, 1)]
    fused = FusedAdamW(ours, slots, 1.0)
    where = fused.blank_addresses()
    for _ in range(5):
        for slot, copy_ in zip(slots, copies, strict=True):
            slot.leaf.grad = torch.randn_like(slot.leaf)
            copy_.grad = slot.leaf.grad.float().clone()  # clipping is in place
        torch.nn.utils.clip_grad_norm_(copies[:2], 1.0)
        reference.step()
        fused.set_rates()
        fused.fill_addresses(where)
        fused.step(where)
    for mine, theirs in zip(masters, copies, strict=True):
        # the kernel's exponential and logarithm are good to 2**-22, bias correction divides by 0.001
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-5)
        moments = (ours.state[mine]["exp_avg_sq"], reference.state[theirs]["exp_avg_sq"])
        torch.testing.assert_close(*moments, rtol=1e-5, atol=1e-8)
        assert ours.state[mine]["step"] == reference.state[theirs]["step"] == 5
    assert torch.equal(leaf, as_bf16(masters[0]))


@pytest.mark.parametrize("cut", [False, True])
def test_the_step_made_of_them_within_bf16(cut: bool) -> None:
    """Three steps: as far from fp32 as the eager bf16 step is, or little more."""
    model = build("bert", "classification", cut).to(DEVICE)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    results = []
    for make in (EagerStep, lambda *a: EagerStep(*a, precision="bf16"), graphed):
        mine = copy.deepcopy(model)
        step = make(mine, adamw(mine, lr=1e-3, weight_decay=0.01))
        losses = [float(step(step.prepare([batch_of([1, 5], "classification", seed)]))) for seed in range(3)]
        results.append((losses, torch.cat([p.detach().flatten() for p in mine.parameters()])))
    (exact, exact_end), (_, half_end), (fast, fast_end) = results
    assert fast == pytest.approx(exact, abs=0.002)
    moved = (exact_end - start).norm()
    assert (fast_end - exact_end).norm() / moved < 2 * (half_end - exact_end).norm() / moved + 0.02
