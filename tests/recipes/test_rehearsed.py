"""Runs whose steps are rehearsed, as on a GPU, give what the same runs give without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from earlybert.train import engine

from .conftest import equal, run, steps, tiny_flags


@pytest.fixture
def rehearsals(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The machine is believed to have a GPU that takes no graphs; what each rehearsal found."""
    found: list[str | None] = []
    rehearse = engine.rehearse

    def watched(*args: Any) -> str | None:
        found.append(rehearse(*args))
        return found[-1]

    monkeypatch.setattr(engine, "_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(engine, "_no_graph", lambda *_, **__: "this is a test.")
    monkeypatch.setattr(engine, "rehearse", watched)
    return found


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["--method", "ticket", "--search-steps", "10", "--profile-steps", "2"], 2),
        (["--recipe", "best", "--heads", "1"], 3),  # matching ends, and the step is another
        (["--method", "dense", "--accumulate", "2"], 1),
    ],
)
def test_fine_tuning(
    words: list[str], count: int, model_folder: Path, data_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    flags = [*tiny_flags(model_folder, data_dir), "--engine", "fast", *words]
    assert run("finetune", *flags, "--output", tmp_path / "plain") == 0
    found = request.getfixturevalue("rehearsals")
    assert run("finetune", *flags, "--output", tmp_path / "rehearsed") == 0
    assert found == [None] * count
    assert equal(tmp_path / "plain", tmp_path / "rehearsed")
    assert steps(tmp_path / "plain") == steps(tmp_path / "rehearsed")


def test_pre_training(corpus_folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    flags = [
        *("--corpus", str(corpus_folder), "--device", "cpu", "--precision", "no", "--engine", "fast"),
        *("--layers", "2", "--hidden", "32", "--attention-heads", "4", "--intermediate", "64", "--positions", "64"),
        *("--steps", "8", "--second", "0", "--length", "24", "--batch", "8", "--rows", "4", "--search-steps", "4"),
        *("--heads", "1", "--align", "8", "--eval-every", "0", "--checkpoint-every", "0", "--profile-steps", "0"),
    ]
    assert run("pretrain", *flags, "--output", tmp_path / "plain") == 0
    found = request.getfixturevalue("rehearsals")
    assert run("pretrain", *flags, "--output", tmp_path / "rehearsed") == 0
    assert found == [None, None]
    assert equal(tmp_path / "plain", tmp_path / "rehearsed")
    assert steps(tmp_path / "plain") == steps(tmp_path / "rehearsed")
