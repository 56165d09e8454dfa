"""Tiny whole runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from earlybert.cli import main
from earlybert.config.finetune import Finetune
from earlybert.recipes import finetune, pretrain
from earlybert.train.step import EagerStep
from earlybert.train.steplog import read_steps


@pytest.fixture(autouse=True)
def _fixed_threads():
    """Bit-equality is promised for a fixed number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pages() -> None:
    """For a test whose runs write their page."""


@pytest.fixture(autouse=True)
def _no_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs; `tests/report` has more runs that write their page."""
    if "pages" not in request.fixturenames:
        for recipe in (finetune, pretrain):
            monkeypatch.setattr(recipe, "write_report", lambda run: None)


@pytest.fixture
def flags(model_folder: Path, data_dir: Path) -> list[str]:
    return tiny_flags(model_folder, data_dir)


def tiny_flags(model_folder: Path, data_dir: Path) -> list[str]:
    """Settings of a run of a second."""
    return [
        *("--model", str(model_folder), "--task", "sst2", "--data-dir", str(data_dir), "--device", "cpu"),
        *("--max-length", "16", "--batch-size", "4", "--precision", "no", "--align", "8", "--heads", "1"),
        *("--dense-lr", "1e-3", "--lr", "2e-3", "--log-every", "5", "--checkpoint-every", "4"),
        *("--profile-steps", "0"),
    ]


@pytest.fixture
def config(model_folder: Path, data_dir: Path) -> Finetune:
    """The same for a test that needs no command line; 24 steps an epoch."""
    places: dict[str, Any] = {"model": str(model_folder), "task": "sst2", "data_dir": str(data_dir), "device": "cpu"}
    return Finetune(**places, max_length=16, batch_size=4, precision="no", align=8, heads=1)


def run(*words: object) -> int:
    return main([str(word) for word in words])


def steps(folder: Path) -> list[tuple[str, int, float]]:
    return [(line["stage"], line["step"], line.get("loss", 0.0)) for line in read_steps(folder / "steps.jsonl")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def equal(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return set(first) == set(second) and all(torch.equal(value, second[name]) for name, value in first.items())


class Killed(BaseException):
    """What a power cut would be."""


def dying_at(monkeypatch: pytest.MonkeyPatch, fatal: int) -> Callable[[], None]:
    """From now on the step number `fatal` ends everything; a function that undoes it."""
    real = EagerStep.__call__
    calls = 0

    def mortal(self: EagerStep, batches: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fatal:
            raise Killed
        return real(self, batches)

    monkeypatch.setattr(EagerStep, "__call__", mortal)
    return lambda: monkeypatch.setattr(EagerStep, "__call__", real)


def assert_same(a: Path, b: Path) -> None:
    """Weights, every step's loss, coefficients, ticket, and every evaluation but its time."""
    assert equal(a, b)
    assert steps(a) == steps(b)
    for name in ("history.bin", "ticket.json"):
        assert (a / name).exists() == (b / name).exists()
        assert not (a / name).exists() or (a / name).read_bytes() == (b / name).read_bytes()
    first, second = ([dict(line, seconds=0) for line in read_steps(x / "evaluations.jsonl")] for x in (a, b))
    assert first == second
