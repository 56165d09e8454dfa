"""The graphed step on a GPU against the eager one; skipped where there is none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from earlybert import Gates
from earlybert.train.optimizer import adamw
from earlybert.train.step import EagerStep
from tests.conftest import tiny_batch
from tests.train.test_fast import KINDS, batch_of, build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def graphed(*args: Any, **kwargs: Any) -> Any:
    from earlybert.train.graphed import GraphedStep

    return GraphedStep(*args, precision="bf16", **kwargs)


def losses(step: EagerStep, kind: str, steps: int = 20) -> list[float]:
    found = []
    for seed in range(steps):
        sizes = [1, 30, 7, 512, 20, 3] if seed < steps - 1 else [9, 4]  # a last short batch
        found.append(step(step.prepare([batch_of(sizes, kind, seed, step.model.config.pad_token_id or 0)])))
    return torch.stack(found).tolist()


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_twenty_steps_within_bf16(family: str, kind: str, cut: bool) -> None:
    sizes = {"max_position_embeddings": 520}
    model = build(family, kind, cut, **sizes).cuda()
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    results = []
    for make in (EagerStep, lambda *a: EagerStep(*a, precision="bf16"), graphed):
        mine = copy.deepcopy(model)
        step = make(mine, adamw(mine, lr=1e-3, weight_decay=0.01))
        results.append((losses(step, kind), torch.cat([p.detach().flatten() for p in mine.parameters()])))
    (exact, exact_end), (_, half_end), (fast, fast_end) = results
    assert fast == pytest.approx(exact, abs=0.02)
    # as far from fp32 as the eager bf16 step is, or little more
    moved = (exact_end - start).norm()
    assert (fast_end - exact_end).norm() / moved < 2 * (half_end - exact_end).norm() / moved + 0.02


def test_kernels_against_float64() -> None:
    from earlybert.train.kernels import add_norm, bias_gelu

    for rows, width in ((37, 768), (300, 1024), (64, 32), (5, 3072)):
        y, residual, grad = (torch.randn(1, rows, width, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        bias, weight, shift = (torch.randn(width, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        seeds = torch.arange(2, device="cuda")
        for name, inputs in (("norm", (y, bias, residual, weight, shift)), ("gelu", (y, bias))):
            ours = [t.clone().requires_grad_() for t in inputs]
            exact = [t.double().requires_grad_() for t in inputs]
            if name == "norm":
                out = add_norm(*ours, p=0.0, eps=1e-12, seeds=seeds, which=1)
                true = torch.nn.functional.layer_norm(exact[0] + exact[1] + exact[2], (width,), *exact[3:], 1e-12)
            else:
                out, true = bias_gelu(*ours), torch.nn.functional.gelu(exact[0] + exact[1])
            out.backward(grad)
            true.backward(grad.double())
            pairs = [(out, true), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))]
            assert all((a.double() - b).norm() < 0.01 * b.norm() for a, b in pairs), (name, rows, width)


def test_dropout_rate_independence_and_the_same_mask_backward() -> None:
    from earlybert.train.kernels import add_norm

    ones = torch.ones(1, 4096, 256, device="cuda", dtype=torch.bfloat16)
    weight, seeds = torch.ones(256, device="cuda", dtype=torch.bfloat16), torch.tensor([5, 6], device="cuda")
    masks = []
    for which in (0, 1):
        y, zero = ones.clone().requires_grad_(), torch.zeros_like(ones).requires_grad_()
        out = add_norm(y, None, zero, weight, torch.zeros_like(weight), p=0.1, eps=1e-12, seeds=seeds, which=which)
        out.backward(torch.randn_like(out))
        dropped = out < 0
        assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.002)
        assert torch.equal(y.grad == 0, dropped)
        masks.append(dropped.flatten().float())
    assert abs(torch.corrcoef(torch.stack(masks))[0, 1].item()) < 0.005


def test_clip_and_adamw_against_torch() -> None:
    """The optimizer alone, on the same gradients: fp32 and bf16, decay, clipping, coefficients left out."""
    from earlybert.train.fused import FusedAdamW, Slot

    torch.manual_seed(0)
    sizes = ((300, 70), (5000,), (3,))
    masters = [torch.nn.Parameter(torch.randn(size, device="cuda")) for size in sizes]
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
    assert torch.equal(leaf, masters[0].bfloat16())


def test_a_search_moves_the_coefficients_alike() -> None:
    model = build("bert", "classification", False).cuda()
    rows = []
    for make in (EagerStep, graphed):
        mine = copy.deepcopy(model)
        with Gates(mine) as gates:
            step = make(mine, adamw(mine, lr=1e-3, gates=gates), gates=gates, l1=(1e-2, 1e-2))
            for seed in range(10):
                step(step.prepare([batch_of([5, 9, 2, 14], "classification", seed)]))
            rows.append(gates.row())
    assert (rows[0] - rows[1]).abs().gt(1e-3).float().mean() < 0.05


def test_graphs_are_bounded_shared_and_survive_a_failed_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("bert", "classification", False, max_position_embeddings=520).cuda()
    step = graphed(model, adamw(model, lr=1e-4), graphs=2)
    for _ in range(3):
        for tokens in (100, 200, 300, 400):
            step(step.prepare([batch_of([tokens, 5], "classification", 0)]))
    assert len(step._graphs) == 2
    from earlybert.train import graphed as module

    def fails(*_: object, **__: object) -> None:
        torch.cuda.synchronize()  # not allowed while capturing

    other = graphed(model, adamw(model, lr=1e-4))
    with monkeypatch.context() as patch:
        patch.setattr(module.FusedAdamW, "step", fails)
        batch = other.prepare([tiny_batch()])
        other._seen.add((batch[0][0].tokens, len(batch[0][0].bounds) - 2, batch[0][0].longest))
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(other, "_uncaptured", lambda _: torch.zeros(()))
            other(batch)
    assert other.limit == 0
    assert torch.isfinite(other(other.prepare([tiny_batch()])))  # goes on without graphs
