"""Disks that are full or read-only, and folders that somebody else works on."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from earlybert.recipes import lock
from earlybert.recipes.finetuning import stages as recipe_stages
from earlybert.ticket import files, history
from earlybert.train import steplog
from tests.recipes.conftest import equal, run, steps

SETTINGS = ("--search-steps", "6", "--epochs", "0.5", "--weights", "reset")
SITES = (
    *("config.yaml", "history.bin", "steps.jsonl", "checkpoint.safetensors", "scores.safetensors", "ticket.json"),
    *("model", "predictions.safetensors", "metrics.json"),
)
"""Everything a run writes that it cannot do without, in the order in which it is first written."""


@pytest.mark.parametrize("why", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_at_every_file_in_turn(
    why: int,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each attempt ends at the next file with one sentence; the last one has the result of a run left alone."""
    assert run("finetune", *flags, *SETTINGS, "--output", tmp_path / "whole") == 0
    out, failing = tmp_path / "run", ""
    real_replace, real_open, real_mkdtemp = os.replace, open, files.tempfile.mkdtemp

    def fails(name: str) -> None:
        if name == failing:
            raise OSError(why, os.strerror(why))

    def replace(source: Any, target: Any) -> None:
        fails(Path(target).name)
        real_replace(source, target)

    def opened(path: Any, mode: str = "r", **more: Any) -> Any:
        if mode != "r" and mode != "rb":
            fails(Path(path).name)
        return real_open(path, mode, **more)

    def made(*, prefix: str, **more: Any) -> str:
        fails(prefix.strip("."))
        return real_mkdtemp(prefix=prefix, **more)

    monkeypatch.setattr(files.os, "replace", replace)
    monkeypatch.setattr(files.tempfile, "mkdtemp", made)
    for module in (history, steplog):
        monkeypatch.setattr(module, "open", opened, raising=False)
    for failing in SITES:
        capsys.readouterr()
        words = ["--resume"] if (out / "config.yaml").exists() else [*flags, *SETTINGS]
        assert run("finetune", "--output", out, *words) == 2, failing
        err = capsys.readouterr().err
        assert err.count("\n") == 1, failing
        assert failing in err, failing
        assert os.strerror(why) in err, failing
        assert not list(out.rglob(".*.half")), failing
    failing = ""
    assert run("finetune", "--output", out, "--resume") == 0
    assert equal(tmp_path / "whole", out)
    assert steps(out) == steps(tmp_path / "whole")
    assert {file.name for file in out.iterdir()} == {file.name for file in (tmp_path / "whole").iterdir()}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to make any file larger, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_writes_that_the_system_cuts_short(
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("finetune", *flags, *SETTINGS, "--output", tmp_path / "whole") == 0
    out, codes = tmp_path / "run", []
    for size in (300, 1_000, 4_000, 40_000, 120_000):
        capsys.readouterr()
        words = ["--resume"] if (out / "config.yaml").exists() else [*flags, *SETTINGS]
        with files_of_at_most(size):
            codes.append(run("finetune", "--output", out, *words))
        if codes[-1]:
            assert capsys.readouterr().err.count("\n") == 1
        assert not list(out.rglob(".*.half"))
    assert codes[:3] == [2, 2, 2]
    assert run("finetune", "--output", out, "--resume") == 0
    assert equal(tmp_path / "whole", out)
    assert steps(out) == steps(tmp_path / "whole")


def test_a_folder_that_cannot_be_made(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("finetune", *flags, *SETTINGS, "--output", "/proc/earlybert") == 2
    assert "/proc/earlybert could not be written" in capsys.readouterr().err


def test_two_runs_on_one_folder(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    real = recipe_stages.drive
    others: list[int] = []

    def second(*words: object, **more: Any) -> Any:
        if not others:
            others.append(run("finetune", *flags, *SETTINGS, "--output", out))
            others.append(run("finetune", "--output", out, "--resume"))
            others.append(run("search", "--output", out, "--resume"))
            others.append(run("draw", out))
            others.append(run("train", out))
        return real(*words, **more)

    monkeypatch.setattr(recipe_stages, "drive", second)
    assert run("finetune", *flags, *SETTINGS, "--output", out) == 0
    assert others == [2] * 5
    err = capsys.readouterr().err
    assert f"{out} exists" in err
    assert err.count(f"another process is at work on {out}") == 4


def test_two_runs_begun_at_the_same_moment(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both were checked before either had written anything; the later one finds the other's run."""
    from earlybert.recipes import finetune as recipe

    given = {
        name.removeprefix("--").replace("-", "_"): value for name, value in zip(flags[::2], flags[1::2], strict=True)
    }
    from earlybert.config.finetune import Finetune
    from earlybert.config.values import typed

    numbers = ("max_length", "batch_size", "align", "heads", "log_every", "checkpoint_every", "profile_steps")
    given = typed({name: int(value) if name in numbers else value for name, value in given.items()}, Finetune)
    settings = {**given, "search_steps": 6, "epochs": 0.5}
    first, second = (recipe.start(settings, output=str(tmp_path / "run"), resume=False) for _ in range(2))
    recipe.finetune(first, compare=False, page=False)
    with pytest.raises(files.Refused, match="exists"):
        recipe.finetune(second, compare=False, page=False)


def test_the_lock_goes_with_a_killed_process_and_leaves_no_file(tmp_path: Path) -> None:
    program = (
        "import sys, os, pathlib; from earlybert.recipes.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n print('held', flush=True); os.read(0, 1)"
    )
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", program, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(files.Refused, match="another process is at work"), lock.locked(out):
        pass
    process.kill()
    process.wait()
    (out / ".checkpoint.safetensors.abc.half").write_text("half")
    (out / ".model.abc.half").mkdir()
    with lock.locked(out):
        assert list(out.iterdir()) == []
    assert list(out.iterdir()) == []


def test_where_there_are_no_locks_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock.fcntl, "flock", without)
    with lock.locked(tmp_path / "run"), lock.locked(tmp_path / "run"):
        pass
