"""Pre-training that is killed or stopped, and goes on: bit-equal to the run that was not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from earlybert.recipes.pretraining import stages
from earlybert.recipes.pretraining.bench import Bench
from tests import warm
from tests.recipes.conftest import Killed, assert_same, dying_at, run

from .conftest import FIRST, SEARCH, SECOND


@pytest.mark.parametrize(
    ("method", "engine", "fatal"),
    [
        ("ticket", "eager", [3, SEARCH, SEARCH + 1, 12, SEARCH + FIRST, SEARCH + FIRST + 1, SEARCH + FIRST + SECOND]),
        ("ticket", "fast", [6, 12, SEARCH + FIRST + 2]),
        ("dense", "eager", [2, 7, 15, 16, 20]),
    ],
)
def test_killed_anywhere_and_resumed_is_bit_equal(
    method: str, engine: str, fatal: list[int], flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the search, at its end, in phase 1, at its last step, at the first of phase 2, and at the last of all."""
    words = [*flags, "--method", method, "--engine", engine]
    assert run("pretrain", *words, "--output", tmp_path / "whole") == 0
    for number in fatal:
        out = tmp_path / f"killed-{number}"
        revive = dying_at(monkeypatch, number)
        with pytest.raises(Killed):
            run("pretrain", *words, "--output", out)
        revive()
        assert not (out / "metrics.json").exists()
        assert run("pretrain", *words, "--output", out) == 2  # the folder exists
        assert run("pretrain", "--output", out, "--resume", "--seed", "7") == 2  # other settings
        assert run("pretrain", "--output", out, "--resume") == 0
        assert_same(tmp_path / "whole", out)


@pytest.mark.parametrize("place", ["draw_stage", "apply", "save", "summary"])
def test_killed_between_stages(place: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("pretrain", *flags, "--output", tmp_path / "whole") == 0

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stages, place, killed)
        with pytest.raises(Killed):
            run("pretrain", *flags, "--output", tmp_path / "killed")
    assert run("pretrain", "--output", tmp_path / "killed", "--resume") == 0
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_stopped_while_it_is_scored_no_step_is_taken_again(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the last step of a phase there is a checkpoint, also of one that the clock ended."""
    for name, more in (("steps", []), ("minutes", ["--minutes", "0.05"])):
        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(Bench, "score", stopped)
            given = [*flags, *more, "--method", "dense", "--eval-every", "0", "--checkpoint-every", "1000"]
            assert run("pretrain", *given, "--output", out) == 130
        before = (out / "steps.jsonl").read_bytes()
        assert run("pretrain", "--output", out, "--resume") == 0
        assert (out / "steps.jsonl").read_bytes() == before


def stopped(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_killed_while_a_checkpoint_is_being_written(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("pretrain", *flags, "--output", tmp_path / "whole") == 0
    real, written = os.replace, 0

    def half(source: Any, target: Any) -> None:
        nonlocal written
        if Path(target).name == "checkpoint.safetensors":
            written += 1
            if written == 3:  # in phase 1: the one before is still there
                raise Killed
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", half)
        with pytest.raises(Killed):
            run("pretrain", *flags, "--output", tmp_path / "killed")
    assert run("pretrain", "--output", tmp_path / "killed", "--resume") == 0
    assert_same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_a_process_killed_for_real_resumes_bit_equal(flags: list[str], tmp_path: Path) -> None:
    command, words = ["earlybert", "pretrain"], [*flags, "--steps", "200"]
    warm.run(*command, *words, "--output", tmp_path / "whole")
    out = tmp_path / "killed"
    for mark, again in (('"train", "step": 20,', words), ('"train", "step": 140,', ["--resume"])):
        process = warm.Process(*command, *again, "--output", out)
        log, deadline = out / "steps.jsonl", time.monotonic() + 120
        while time.monotonic() < deadline and not (log.exists() and mark in log.read_text()):
            time.sleep(0.005)
        process.kill()
        assert process.finish().returncode == -signal.SIGKILL
    warm.run(*command, "--resume", "--output", out)
    assert_same(tmp_path / "whole", out)
