"""LAMB against a float64 version of Algorithm 2, and by hand; the schedules of pre-training."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import earlybert as eb
from earlybert.ticket import Gates
from earlybert.train import checkpoint
from earlybert.train.lamb import Lamb, lamb
from earlybert.train.schedule import NVIDIA, Phase, at, polynomial, shortened, split
from tests.conftest import tiny_batch, tiny_model


def algorithm_2(weights, grads, rates, *, b1=0.9, b2=0.999, eps=1e-6, decay=0.01, adapt=True):
    """You et al. 2020, line by line, one parameter, float64."""
    w = weights.astype(np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        g = g.astype(np.float64)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        r = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        u = r + decay * w
        norms = np.linalg.norm(w), np.linalg.norm(u)
        ratio = norms[0] / norms[1] if adapt and all(norms) else 1.0
        w = w - rate * ratio * u
    return w


def test_fifty_steps_against_float64() -> None:
    random = np.random.default_rng(0)
    shapes = [(7, 5), (3, 4), (6,)]
    starts = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    grads = [
        [(random.normal(size=s) * 10.0 ** random.integers(-4, 2)).astype(np.float32) for s in shapes] for _ in range(50)
    ]
    rates = [6e-3 * polynomial(50, 0.2)(done) for done in range(50)]
    parameters = [nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "adapt": False, "weight_decay": 0.0}]
    optimizer = Lamb(groups, lr=1.0)
    for step, rate in zip(grads, rates, strict=True):
        for parameter, grad in zip(parameters, step, strict=True):
            parameter.grad = torch.from_numpy(grad.copy())
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for place, (parameter, start) in enumerate(zip(parameters, starts, strict=True)):
        settings = {} if place < 2 else {"adapt": False, "decay": 0.0}
        expected = algorithm_2(start, [step[place] for step in grads], rates, **settings)
        assert not np.allclose(expected, start, atol=1e-3)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=0, atol=2e-6)


def test_first_step_by_hand() -> None:
    """w = (3, 4), g = (1, -1): r = (1, -1), u = (1.03, -0.96), so the step is lr * 5 / |u| * u."""
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    w.grad = torch.tensor([[1.0, -1.0]])
    Lamb([w], lr=0.1, eps=0.0).step()
    size = 0.1 * 5 / math.hypot(1.03, 0.96)
    assert w.tolist()[0] == pytest.approx([3 - size * 1.03, 4 + size * 0.96], abs=1e-6)


def test_zero_weights_and_zero_gradients() -> None:
    """Where a norm is 0 the ratio is 1: zero weights move like Adam's, zero gradients and updates stay finite."""
    a, b, c = (nn.Parameter(torch.tensor([[value, value]])) for value in (0.0, 0.0, 2.0))
    a.grad, b.grad = torch.ones(1, 2), torch.zeros(1, 2)
    Lamb([a, b, c], lr=0.1).step()
    assert a.tolist()[0] == pytest.approx([-0.1, -0.1], abs=1e-5)
    assert b.tolist() == [[0, 0]]
    assert c.tolist() == [[2, 2]]  # no gradient
    c.grad = torch.zeros(1, 2)
    Lamb([c], lr=0.1, weight_decay=0.0).step()
    assert c.tolist() == [[2, 2]]  # weights of some length, an update of none


def test_the_moments_are_corrected_to_six_digits() -> None:
    """Of a gradient that stays the same Adam makes its sign, at every step."""
    w = nn.Parameter(torch.zeros(2))
    optimizer = Lamb([{"params": [w], "adapt": False}], lr=1.0, eps=0.0, weight_decay=0.0)
    for _ in range(5):
        w.grad = torch.tensor([3.0, -3.0])
        optimizer.step()
    assert w.tolist() == pytest.approx([-5, 5], abs=5e-6)


def test_only_matrices_have_decay_and_trust_ratio() -> None:
    model = tiny_model()
    gates = Gates(model).attach()
    groups = {group["name"]: group for group in lamb(model, lr=1e-3, gates=gates).param_groups}
    assert {name: (group["adapt"], group["weight_decay"]) for name, group in groups.items()} == {
        "matrices": (True, 0.01),
        "vectors": (False, 0.0),
        "coefficients": (False, 0.0),
    }
    assert all(p.dim() > 1 for p in groups["matrices"]["params"])
    assert gates.heads.dim() > 1  # and yet not among the matrices
    norms = {id(p) for name, p in model.named_parameters() if "LayerNorm" in name or name.endswith("bias")}
    assert norms == {id(p) for p in groups["vectors"]["params"]}


def take(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    model(**tiny_batch(seed=seed)).loss.backward()
    optimizer.step()


def test_going_on_from_a_checkpoint_is_bit_equal(tmp_path: Path) -> None:
    model = tiny_model().eval()
    optimizer = lamb(model, lr=1e-2)
    for seed in range(3):
        take(model, optimizer, seed)
    checkpoint.save(tmp_path / "c", model=model, optimizer=optimizer, state={})
    other = tiny_model(seed=1).eval()
    fresh = lamb(other, lr=1e-2)
    checkpoint.load(tmp_path / "c", model=other, optimizer=fresh)
    for seed in range(3, 6):
        take(model, optimizer, seed)
        take(other, fresh, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    counts = {id(state["step"]) for state in fresh.state.values()}
    assert len(counts) == len(fresh.param_groups)  # shared again
    assert {float(state["step"]) for state in fresh.state.values()} == {6.0}


def test_a_state_with_different_counts_is_refused() -> None:
    model = tiny_model()
    optimizer = lamb(model, lr=1e-2)
    take(model, optimizer, 0)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["step"] = torch.tensor(9.0)
    with pytest.raises(eb.Refused, match="different step counts"):
        lamb(tiny_model(), lr=1e-2).load_state_dict(state)


def test_rebind_carries_the_moments_of_what_is_kept() -> None:
    """The cut model's next step must be what Algorithm 2 gives for sliced weights, moments and gradients."""
    model = tiny_model().eval()
    gates = Gates(model).attach()
    optimizer = lamb(model, lr=1e-2, gates=gates)
    for seed in range(2):
        take(model, optimizer, seed)
    gates.detach()
    ticket = eb.Ticket(
        heads=((0, 2), (1, 3), (0, 1)),
        neurons=(tuple(range(0, 64, 2)),) * 3,
        model_type="bert",
        num_heads=4,
        num_neurons=64,
    )
    small = eb.apply(model, ticket)
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    full = optimizer.state[model.get_parameter(name)]
    kept = torch.arange(0, 64, 2)
    moments = {key: full[key][kept].double() for key in ("exp_avg", "exp_avg_sq")}
    eb.rebind(optimizer, model, small)
    w = small.get_parameter(name)
    before = w.detach().double()
    take(small, optimizer, 7)
    g = w.grad.double()
    m = 0.9 * moments["exp_avg"] + 0.1 * g
    v = 0.999 * moments["exp_avg_sq"] + 0.001 * g * g
    u = m / (1 - 0.9**3) / ((v / (1 - 0.999**3)).sqrt() + 1e-6) + 0.01 * before
    expected = before - 1e-2 * before.norm() / u.norm() * u
    torch.testing.assert_close(w.detach().double(), expected, rtol=0, atol=1e-6)
    assert {group["name"] for group in optimizer.param_groups} == {"matrices", "vectors"}


def test_polynomial_against_nvidias_formula() -> None:
    """PolyWarmUpScheduler: last_epoch counts from 1; warm-up is a share of all steps; no rescaling behind it."""
    for phase in NVIDIA:
        for done in (0, 1, 199, 200, 201, 1_000, 2_000, 2_001, phase.steps - 2, phase.steps - 1):
            if done >= phase.steps:
                continue
            progress = (done + 1) / phase.steps
            theirs = progress / phase.warmup if progress < phase.warmup else (1.0 - progress) ** 0.5
            assert phase.schedule(done) == pytest.approx(theirs, abs=1e-12)
    assert polynomial(10, 0.0)(0) == pytest.approx(0.9**0.5)
    assert polynomial(10, 0.2)(99) == 0


def test_phases() -> None:
    assert sum(phase.steps for phase in NVIDIA) == 8_601
    first, second = split(8_601)
    assert (first.steps, second.steps) == (7_741, 860)
    assert (first.length, second.length, first.lr, second.batch) == (128, 512, 6e-3, 32_768)
    ticket = shortened(NVIDIA, 0.8)
    assert [phase.steps for phase in ticket] == [5_630, 1_250]
    assert ticket[0].schedule(0) == pytest.approx(1 / (5_630 * 0.2843))
    small = (Phase(3, 8, 2, 1.0, 0.0), Phase(2, 16, 2, 1.0, 0.0))
    assert [at(small, done) for done in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
