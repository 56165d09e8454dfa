"""Clip and LAMB as Triton kernels, on a GPU or interpreted, against Algorithm 2 in float64 and the plain `Lamb`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from earlybert.train.lamb import Lamb
from tests.train.test_lamb import algorithm_2

pytest.importorskip("triton")
from earlybert.train.cuda.fused import BLOCK, Slot
from earlybert.train.cuda.fused_lamb import FusedLamb

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(200, 20), (BLOCK,), (7, 5), (6,), (2, 3)]
"""Whole pieces and an end, a whole piece alone, ends alone; the last is coefficients."""


def groups_of(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"name": "matrices", "params": [parameters[0], parameters[2]]},
        {"name": "vectors", "params": [parameters[1], parameters[3]], "adapt": False, "weight_decay": 0.0},
        {"name": "coefficients", "params": [parameters[4]], "adapt": False, "weight_decay": 0.0},
    ]


GROUP = [0, 1, 0, 1, 2]


class Fused:
    """A `FusedLamb` on parameters of these shapes; the first has a bf16 leaf, the second a bf16 leaf behind another."""

    def __init__(self, starts: list[np.ndarray], norm: float | None, *, summed: bool) -> None:
        self.parameters = [nn.Parameter(torch.from_numpy(start.copy()).to(DEVICE)) for start in starts]
        self.optimizer = Lamb(groups_of(self.parameters), lr=1.0)
        self.slots, self.offsets = [], [0, 64, 0, 0, 0]
        for number, parameter in enumerate(self.parameters):
            leaf: torch.Tensor = parameter
            if number < 2:
                leaf = torch.zeros(self.offsets[number] + parameter.numel(), dtype=torch.bfloat16, device=DEVICE)
            total = torch.zeros_like(parameter) if summed else None
            self.slots.append(Slot(parameter, leaf, self.offsets[number], GROUP[number], total=total))
        self.norm = norm
        self.build()

    def build(self) -> None:
        self.fused = FusedLamb(self.optimizer, self.slots, self.norm)
        self.where = self.fused.blank_addresses()

    def step(self, grads: list[np.ndarray], rate: float) -> None:
        for slot, grad in zip(self.slots, grads, strict=True):
            value = torch.from_numpy(grad.copy()).to(DEVICE)
            if slot.total is not None:
                slot.total.copy_(value)
            else:
                slot.leaf.grad = torch.zeros_like(slot.leaf)
                slot.leaf.grad.flatten()[slot.offset : slot.offset + value.numel()] = value.flatten().to(
                    slot.leaf.dtype
                )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.fused.set_rates()
        self.fused.fill_addresses(self.where)
        self.fused.step(self.where)


def draws(steps: int) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Starts, and gradients that bf16 holds exactly, of sizes from 1e-4 to 10."""
    random = np.random.default_rng(0)
    starts = [random.normal(size=shape).astype(np.float32) for shape in SHAPES]
    grads = [
        [
            torch.from_numpy(random.normal(size=shape) * 10.0 ** random.integers(-4, 2)).bfloat16().float().numpy()
            for shape in SHAPES
        ]
        for _ in range(steps)
    ]
    return starts, grads


def clipped(grads: list[np.ndarray], norm: float | None) -> list[np.ndarray]:
    """As `clip_grad_norm_` over all but the coefficients, in float64."""
    if norm is None:
        return grads
    whole = np.sqrt(sum((grad.astype(np.float64) ** 2).sum() for grad in grads[:4]))
    factor = min(1.0, norm / (whole + 1e-6))
    return [grad.astype(np.float64) * (factor if number < 4 else 1.0) for number, grad in enumerate(grads)]


@pytest.mark.parametrize(("norm", "summed"), [(None, True), (1.0, False)])
def test_steps_against_float64(norm: float | None, summed: bool) -> None:
    steps = 6
    starts, grads = draws(steps)
    rates = [6e-3 * (1 - done / steps) ** 0.5 for done in range(steps)]
    ours = Fused(starts, norm, summed=summed)
    for step, rate in zip(grads, rates, strict=True):
        ours.step(step, rate)
    known = [clipped(step, norm) for step in grads]
    for number, (parameter, start) in enumerate(zip(ours.parameters, starts, strict=True)):
        settings = {} if GROUP[number] == 0 else {"adapt": False, "decay": 0.0}
        expected = algorithm_2(start, [step[number] for step in known], rates, **settings)
        assert not np.allclose(expected, start, atol=1e-3)
        np.testing.assert_allclose(parameter.detach().cpu().numpy(), expected, rtol=0, atol=2e-6)
    for slot in ours.slots[:2]:  # what the next forward pass reads
        held = slot.leaf[slot.offset :].view_as(slot.master)
        cut = 0.0 if DEVICE == "cuda" else 2**-7  # the interpreter rounds to bf16 by cutting off
        torch.testing.assert_close(held, slot.master.detach().bfloat16(), rtol=cut, atol=0)
        assert not slot.leaf[: slot.offset].any()


def test_state_goes_to_the_plain_optimizer_and_back() -> None:
    """Three steps fused, three plain from its state dict, three fused again: as nine plain ones."""
    starts, grads = draws(9)
    plain_parameters = [nn.Parameter(torch.from_numpy(start.copy()).to(DEVICE)) for start in starts]
    plain = Lamb(groups_of(plain_parameters), lr=1e-2)

    def take(optimizer: Lamb, parameters: list[nn.Parameter], step: list[np.ndarray]) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        for parameter, grad in zip(parameters, step, strict=True):
            parameter.grad = torch.from_numpy(grad.copy()).to(DEVICE)
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    for step in grads:
        take(plain, plain_parameters, step)
    ours = Fused(starts, None, summed=True)
    for step in grads[:3]:
        ours.step(step, 1e-2)
    between = [nn.Parameter(parameter.detach().clone()) for parameter in ours.parameters]
    middle = Lamb(groups_of(between), lr=1e-2)
    middle.load_state_dict(copy.deepcopy(ours.optimizer.state_dict()))
    for step in grads[3:6]:
        take(middle, between, step)
    with torch.no_grad():
        for parameter, value in zip(ours.parameters, between, strict=True):
            parameter.copy_(value)
    ours.optimizer.load_state_dict(copy.deepcopy(middle.state_dict()))
    ours.build()
    for step in grads[6:]:
        ours.step(step, 1e-2)
    for mine, theirs in zip(ours.parameters, plain_parameters, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)
    counts = {id(state["step"]) for state in ours.optimizer.state.values()}
    assert len(counts) == 3  # one a group, as the plain optimizer has it
    assert {float(state["step"]) for state in ours.optimizer.state.values()} == {9.0}


def test_zero_weights_and_zero_updates_have_a_ratio_of_one() -> None:
    zeros = [np.zeros(shape, dtype=np.float32) for shape in SHAPES]
    ones = [np.ones(shape, dtype=np.float32) for shape in SHAPES]
    ours = Fused(zeros, None, summed=True)
    ours.step(ones, 0.1)
    for parameter in ours.parameters:
        torch.testing.assert_close(parameter, torch.full_like(parameter, -0.1), rtol=0, atol=1e-5)
    still = Fused(zeros, None, summed=True)
    still.step(zeros, 0.1)
    assert not any(parameter.any() for parameter in still.parameters)


def test_the_same_bits_again() -> None:
    starts, grads = draws(3)
    runs = [Fused(starts, 1.0, summed=False) for _ in range(2)]
    for ours in runs:
        for step in grads:
            ours.step(step, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters, runs[1].parameters, strict=True))
