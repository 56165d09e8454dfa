"""Checkpoints, the clock, schedules."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from earlybert import Refused
from earlybert.ticket import Gates
from earlybert.train import checkpoint, linear
from earlybert.train.clock import Clock
from earlybert.train.optimizer import adamw
from earlybert.train.step import EagerStep
from tests.conftest import tiny_batch, tiny_model


def trained(steps: int) -> EagerStep:
    model = tiny_model().train()
    gates = Gates(model).attach()
    step = EagerStep(model, adamw(model, lr=1e-3, weight_decay=0.1, gates=gates), gates=gates, l1=(1e-3, 1e-3))
    for seed in range(steps):
        step(step.prepare([tiny_batch(seed=seed)]))
    return step


def save(path: Path, step: EagerStep) -> None:
    checkpoint.save(path, model=step.model, optimizer=step.optimizer, gates=step.gates, state={"step": 3})


def test_going_on_from_a_checkpoint_is_bit_equal(tmp_path: Path) -> None:
    torch.manual_seed(0)
    step = trained(3)
    step.model.register_buffer("seen", torch.tensor(3.0))
    save(tmp_path / "c.safetensors", step)
    loss = step(step.prepare([tiny_batch(seed=9)]))
    other = trained(1)
    other.model.register_buffer("seen", torch.tensor(0.0))
    for group in other.optimizer.param_groups:
        group["lr"], group["betas"] = 7.0, (0.5, 0.5)
    state = checkpoint.load(tmp_path / "c.safetensors", model=other.model, optimizer=other.optimizer, gates=other.gates)
    assert state == {"step": 3} == checkpoint.peek(tmp_path / "c.safetensors")
    assert torch.equal(other(other.prepare([tiny_batch(seed=9)])), loss)
    for a, b in zip(step.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(step.gates.neurons, other.gates.neurons)
    assert other.model.seen == 3


def test_a_step_count_shared_by_all_parameters_is_saved(tmp_path: Path) -> None:
    """As the fused optimizer keeps it."""
    step = trained(2)
    count = torch.tensor(2.0)
    for entry in step.optimizer.state.values():
        entry["step"] = count
    save(tmp_path / "c.safetensors", step)
    other = trained(1)
    checkpoint.load(tmp_path / "c.safetensors", model=other.model, optimizer=other.optimizer, gates=other.gates)
    assert {float(entry["step"]) for entry in other.optimizer.state.values()} == {2.0}


def test_other_models_and_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    step = trained(1)
    with pytest.raises(Refused, match="is not there"):
        checkpoint.peek(path)
    save(path, step)
    other = tiny_model(num_hidden_layers=2)
    with pytest.raises(Refused, match="of another model"):
        checkpoint.load(path, model=other, optimizer=adamw(other, lr=1e-3))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Refused, match="is broken"):
        checkpoint.peek(path)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    step = trained(1)
    save(path, step)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(Refused, match="No space left"):
        save(path, step)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_linear_schedule_against_transformers() -> None:
    from transformers import get_linear_schedule_with_warmup

    for steps, warmup in ((10, 0), (7, 1)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        reference = get_linear_schedule_with_warmup(optimizer, warmup, steps)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            reference.step()
        ours = [linear(steps, warmup)(done) for done in range(steps)]
        assert ours[warmup:] == pytest.approx(rates[warmup:])
    assert linear(10)(10) == 0
    assert linear(10, 3)(0) == 0.25  # the first step of a warm-up moves, unlike theirs


def test_clock_counts_only_what_is_inside() -> None:
    clock = Clock(torch.device("cpu"))
    for _ in range(2):
        time.sleep(0.02)
        with clock:
            time.sleep(0.01)
    seconds = clock.read()
    assert len(seconds) == 2
    assert all(0.01 <= s < 0.02 for s in seconds)
    assert clock.read() == []
