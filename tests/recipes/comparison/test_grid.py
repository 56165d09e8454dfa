"""Runs beside each other, with failures, kills and stops among them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from earlybert.anatomy import Refused
from earlybert.recipes import finetune as recipe
from earlybert.recipes import grid
from earlybert.recipes.lock import locked
from tests import warm

from ..conftest import run
from .conftest import read


def test_room_is_by_cores_on_a_cpu_and_by_memory_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid.os, "cpu_count", lambda: 16)
    assert grid.room(grid.Outcome({"peak_memory_bytes": None})) == 4
    assert grid.room(grid.Outcome(None, "failed")) == 4
    monkeypatch.setattr(grid.torch.cuda, "mem_get_info", lambda: (40 * 2**30, 80 * 2**30))
    for count in (1, 2):
        monkeypatch.setattr(grid.torch.cuda, "device_count", lambda count=count: count)
        assert grid.room(grid.Outcome({"peak_memory_bytes": 7 * 2**30})) == 4 * count  # 32 GiB for 8 each
        assert grid.room(grid.Outcome({"peak_memory_bytes": 2**20})) == 8  # half the cores
        assert grid.room(grid.Outcome({"peak_memory_bytes": 70 * 2**30})) == count


def _device(_: int) -> str | None:
    time.sleep(0.5)  # so that every process gets something to do
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_runs_at_once_are_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert grid.gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7,9")  # more than torch can use
    assert grid.gpus() == ["5", "7"]
    with monkeypatch.context() as patch:
        patch.setattr(grid, "get_context", lambda _: warm.CONTEXT)
        with grid._pool(3, 1) as pool:
            assert sorted(set(pool.map(_device, range(6)))) == ["5", "7"]
            assert len(pool._processes) == 3
    monkeypatch.setattr(grid.torch.cuda, "device_count", lambda: 0)
    with grid._pool(1, 1) as pool:
        assert pool.submit(_device, 0).result() == "5, 7,9"  # left as it was


def test_an_unforeseen_error_ends_one_run_and_not_the_grid(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recipe.finetune

    def failing(start: recipe.Start, **options: Any) -> Any:
        if start.run.config.method == "random":
            raise RuntimeError("CUDA error: an illegal memory access\nmore")
        return real(start, **options)

    monkeypatch.setattr(recipe, "finetune", failing)
    assert run("compare", "--config", given, "--seeds", "[1]", "--output", tmp_path / "out") == 0
    failure = read(tmp_path / "out")["verdicts"]["random"]["sst2"]["failures"]["1"]
    assert failure == "RuntimeError: CUDA error: an illegal memory access (see failed.log)."
    assert "Traceback" in (tmp_path / "out" / "sst2" / "random" / "seed-1" / "failed.log").read_text()


def test_two_processes_do_not_work_on_one_run(tmp_path: Path) -> None:

    first, second = locked(tmp_path / "run"), locked(tmp_path / "run")
    with first, pytest.raises(Refused, match="another process is at work"), second:
        pass
    with locked(tmp_path / "run"):
        pass


def wait_for_two(out: Path) -> None:
    """Until two runs have begun to log; not with `rglob`, as files come and go in their folders."""
    ends = time.monotonic() + 120
    while len(list(out.glob("*/*/*/steps.jsonl"))) < 2 and time.monotonic() < ends:
        time.sleep(0.2)


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
def test_a_killed_worker_costs_one_attempt_and_nothing_twice(given: Path, tmp_path: Path) -> None:
    """One of two workers is killed for real; every finished run has each of its steps once."""
    out = tmp_path / "out"
    plain = {**yaml.safe_load(given.read_text()), "dense_epochs": 15, "epochs": 15, "jobs": 2, "seeds": [1]}
    plain["methods"] = ["dense", "ticket", "random", "magnitude"]
    given.write_text(yaml.safe_dump(plain))
    program = (
        "import sys; from earlybert.recipes import grid; from tests import warm; "
        "grid.get_context = lambda _: warm.CONTEXT; from earlybert.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "compare", "--config", str(given), "--output", str(out)]
    process = subprocess.Popen(command, cwd=warm.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for_two(out)
    (server,) = (
        child for child in children(process.pid) if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
    os.kill(children(server)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-2000:]
    failed = [row for row, by in read(out)["verdicts"].items() if by["sst2"]["failures"]]
    assert len(failed) <= 2  # the one that was hit, or its innocent neighbour; not those that came after
    for file in out.rglob("steps.jsonl"):
        lines = [(line["stage"], line["step"]) for line in map(json.loads, file.read_text().splitlines())]
        assert len(lines) == len(set(lines)), file
    assert run("compare", "--config", given, "--jobs", "1", "--output", out) == 0
    assert not [row for row, by in read(out)["verdicts"].items() if by["sst2"]["failures"]]


@pytest.mark.slow
def test_an_interrupt_of_the_comparison_alone_reaches_its_runs(given: Path, tmp_path: Path) -> None:
    """As a supervisor sends it; a terminal's Ctrl-C reaches all processes by itself."""
    out = tmp_path / "out"
    long = {**yaml.safe_load(given.read_text()), "dense_epochs": 9000, "methods": ["dense"], "jobs": 2}
    given.write_text(yaml.safe_dump(long))
    command = [sys.executable, "-m", "earlybert", "compare", "--config", str(given), "--output", str(out)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    try:
        wait_for_two(out)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what is left would train for days
    assert process.returncode == 130
    assert f"to go on: earlybert compare --config {out / 'compare.yaml'}" in errors.decode()
    assert len(list(out.rglob("checkpoint.safetensors"))) == 2
    assert not list(out.rglob("metrics.json"))
