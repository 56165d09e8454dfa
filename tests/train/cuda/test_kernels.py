"""Triton kernels against torch in float64, with and without a GPU."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.train.cuda.conftest import DEVICE, needs_triton
from tests.train.test_fast import build

needs_triton()
pytestmark = pytest.mark.usefixtures("quick")

SHAPES = [(1, 48), (7, 1), (7, 100), (33, 48), (3, 768)]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE).bfloat16()


def leaves(*tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The same for the kernel and, in float64, for torch."""
    return [t.clone().requires_grad_() for t in tensors], [t.double().requires_grad_() for t in tensors]


def agree(ours: list[Tensor], exact: list[Tensor], out: Tensor, true: Tensor, tolerance: float = 0.006) -> None:
    """Output and gradients are as near to the truth as the dtype can say."""
    grad = normal(*out.shape).to(out.dtype)
    out.backward(grad)
    true.backward(grad.double())
    for mine, theirs in [(out, true), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]:
        assert mine is not None
        assert theirs is not None
        assert torch.isfinite(mine).all()
        assert (mine.double() - theirs).norm() <= tolerance * theirs.norm() + 1e-6


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
    from earlybert.train.cuda.kernels import add_norm

    torch.manual_seed(0)
    ours, exact = leaves(normal(1, rows, width), normal(width), normal(1, rows, width), normal(width), normal(width))
    out = add_norm(*ours, p=p, eps=0.1, seeds=torch.tensor([3, 2**31 - 1], device=DEVICE), which=1)
    keep = kept((1, rows, width), 2**31 - 1, p)
    added = torch.where(keep, (exact[0] + exact[1]) / (1 - p), 0.0) + exact[2]
    agree(ours, exact, out, F.layer_norm(added, (width,), exact[3], exact[4], 0.1))


def test_add_norm_without_a_bias() -> None:
    from earlybert.train.cuda.kernels import add_norm

    ours, exact = leaves(normal(1, 7, 48), normal(1, 7, 48), normal(48), normal(48))
    out = add_norm(ours[0], None, *ours[1:], p=0.0, eps=1e-12, seeds=torch.zeros(1, device=DEVICE).long(), which=0)
    agree(ours, exact, out, F.layer_norm(exact[0] + exact[1], (48,), exact[2], exact[3], 1e-12))


def test_dropout_rate_independence_and_the_same_mask_backward() -> None:
    from earlybert.train.cuda.kernels import add_norm

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
    from earlybert.train.cuda.kernels import bias_gelu

    torch.manual_seed(0)
    ours, exact = leaves(normal(1, rows, width), normal(width))
    agree(ours, exact, bias_gelu(ours[0], ours[1]), F.gelu(exact[0] + exact[1]))


def test_every_tiling_of_the_gelu_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from earlybert.train.cuda import kernels

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
    from earlybert.train.cuda.fused import Slot
    from earlybert.train.cuda.fused_adamw import FusedAdamW

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
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-6)  # bias correction divides by 0.001
        moments = (ours.state[mine]["exp_avg_sq"], reference.state[theirs]["exp_avg_sq"])
        torch.testing.assert_close(*moments, rtol=1e-5, atol=1e-8)
        assert ours.state[mine]["step"] == reference.state[theirs]["step"] == 5
    assert torch.equal(leaf, as_bf16(masters[0]))


def test_gelu_with_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 3 on the way, and what a coefficient of zero hides comes back in its gradient."""
    from earlybert.train.cuda import kernels

    monkeypatch.setattr(kernels, "TILE", 4)
    for dtype, tolerance in ((torch.bfloat16, 0.006), (torch.float32, 1e-6)):
        y, bias = normal(1, 33, 100).to(dtype), normal(100).to(dtype)
        c = torch.randn(100, device=DEVICE)
        c[7] = 0
        ours, exact = leaves(y, bias, c)
        out = kernels.bias_gelu(*ours)
        agree(ours, exact, out, F.gelu(exact[0] + exact[1]) * exact[2], tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_of_residuals_are_added_by_the_products(dtype: torch.dtype) -> None:
    from earlybert.train.cuda import linears

    torch.manual_seed(0)
    tolerance = 0.006 if dtype == torch.bfloat16 else 1e-6
    x, weight, bias = normal(1, 19, 32).to(dtype), normal(3 * 20, 32).to(dtype), normal(3 * 20).to(dtype)
    ours, exact = leaves(x, weight)
    both = torch.cat(linears.linear(*ours), dim=-1)
    agree(ours, exact, both, torch.cat([F.linear(*exact), exact[0]], dim=-1), tolerance)

    ours, exact = leaves(x, weight, bias)
    into = torch.full((linears.parts(20), 1, 60), float("nan"), device=DEVICE)
    both = torch.cat(linears.projection(*ours, into=into), dim=-1)
    agree(ours[:2], exact[:2], both, torch.cat([F.linear(*exact), exact[0]], dim=-1), tolerance)
    assert ours[2].grad is None
    assert exact[2].grad is not None
    assert (into.sum((0, 1)).double() - exact[2].grad).norm() < 1e-6 * exact[2].grad.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_are_finished_and_added_to(dtype: torch.dtype) -> None:
    from earlybert.train.cuda.sums import Sums

    tolerance = 2**-6 if dtype == torch.bfloat16 else 1e-5
    gradients = [torch.full((width,), 7.0, device=DEVICE, dtype=dtype) for width in (100, 100, 3)]
    sums = Sums()
    rooms = [sums.room(41, gradients[:2]), sums.room(1, gradients[2:])]
    for room in rooms:
        room.normal_()
    true = [*rooms[0].double().sum(0), rooms[1].double().sum((0, 1))]
    for times in (1, 2):
        sums.finish(add=times == 2)
        for ours, exact in zip(gradients, true, strict=True):
            torch.testing.assert_close(ours.double(), times * exact, rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_coefficients_on_heads_by_columns(dtype: torch.dtype) -> None:
    """Eq. 2 in float64: three layers, five heads of twelve features."""
    from earlybert.train.cuda.coefficients import ScaledOutputs

    torch.manual_seed(0)
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-6
    heads = torch.nn.Parameter(torch.randn(3, 5, device=DEVICE))
    heads.data[1, 2] = 0
    masters = [torch.nn.Parameter(torch.randn(40, 60, device=DEVICE)) for _ in range(3)]
    copies = [torch.empty(40, 60, device=DEVICE, dtype=dtype).requires_grad_() for _ in range(3)]
    outputs = ScaledOutputs(heads, masters, copies)
    outputs.scale()
    exact = [master.detach().double().requires_grad_() for master in masters]
    coefficients = heads.detach().double().requires_grad_()
    for layer, mine in enumerate(copies):
        scaled = exact[layer] * coefficients[layer].repeat_interleave(12)
        torch.testing.assert_close(mine.double(), scaled, rtol=tolerance, atol=0)
        mine.grad = torch.randn_like(mine)
        scaled.backward(mine.grad.double())
    where = outputs.blank_addresses()
    outputs.fill_addresses(where)
    outputs.unscale(where)
    for mine, true in zip(copies, exact, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.double(), true.grad, rtol=tolerance, atol=0)
    torch.testing.assert_close(outputs.gradient.double(), coefficients.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_embeddings(name: str, p: float) -> None:
    """Words that come often, once and never, padding that has no gradient, two micro-batches, and the zeros after."""
    from earlybert.train.cuda.embed import Embeddings
    from earlybert.train.cuda.sums import Sums

    model = build(name, "classification", False, hidden_dropout_prob=p).to(DEVICE)
    assert Embeddings.possible(model)
    block = getattr(model, model.base_model_prefix).embeddings
    true = copy.deepcopy(block).double()
    sums, seeds = Sums(), torch.tensor([0, 77], device=DEVICE)
    ours = Embeddings(block, seeds, 1, sums, torch.float32)
    random = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(2):
        ids = torch.randint(0, 20, (1, 37), generator=random).masked_fill(torch.arange(37) % 3 == 0, 7)
        places = torch.arange(37)[None] % 9
        inputs = {"input_ids": ids, "token_type_ids": ids % len(ours.weights[1]), "position_ids": places}
        batches.append({key: value.to(DEVICE) for key, value in {**inputs, **ours.orders(inputs)}.items()})
    ours.begin(batches)
    true.dropout.p = 0.0
    for number, inputs in enumerate(batches):
        out = ours.forward(**ours.take(inputs))
        exact = true(**{key: value for key, value in inputs.items() if "_ids" in key})
        exact = torch.where(kept(tuple(exact.shape), 77, p), exact / (1 - p), 0.0)
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
        grad = torch.randn_like(out)
        out.backward(grad)
        exact.backward(grad.double())
        sums.finish(add=number > 0)
    names = {id(parameter): key for key, parameter in block.named_parameters()}
    assert len(ours.gradients) == 5
    for parameter, gradient in ours.gradients:
        other = true.get_parameter(names[id(parameter)]).grad
        torch.testing.assert_close(gradient.double(), other, rtol=1e-4, atol=1e-5)
    ours.clear()
    assert not ours.gradients[0][1].any()
    assert not ours.gradients[2][1].any()


def test_embeddings_that_are_read_elsewhere_or_frozen_stay_as_they_are() -> None:
    from earlybert.train.cuda.embed import Embeddings

    assert not Embeddings.possible(build("bert", "mlm", False))  # tied to the vocabulary projection
    assert not Embeddings.possible(build("distilbert", "classification", False))
    model = build("bert", "classification", False)
    model.bert.embeddings.LayerNorm.weight.requires_grad_(False)
    assert not Embeddings.possible(model)


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100_without_spilling() -> None:
    """No GPU is needed for that, and the compiler refuses things that the interpreter takes."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 20
    for name, uses in found.items():
        assert uses["local"] == 0, name
        assert uses["registers"] <= 128, name
        if not name.endswith(
            ("_finish True", "_finish False", "_trust", "FULL=False", "CLEAR=True")
        ):  # masked, or storing only
            assert uses["widest_load_bits"] == 128, name
