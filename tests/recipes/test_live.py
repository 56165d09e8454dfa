"""What a run shows in each mode, what its exit code says, and that none of it touches the result."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from earlybert.recipes import drive
from earlybert.recipes.display import Display, display
from earlybert.recipes.grid import Cell, run_grid
from earlybert.train.step import EagerStep
from earlybert.train.steplog import read_steps

from .conftest import equal, run, steps

SHORT = ("--search-steps", "12", "--epochs", "1")


def events(out: str) -> list[dict[str, Any]]:
    """Every line is one JSON object, strictly: no NaN, no escape codes, nothing between."""

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    assert out.endswith("\n")
    found = [json.loads(line, parse_constant=refuse) for line in out.splitlines()]
    assert all(isinstance(event, dict) and isinstance(event["event"], str) for event in found)
    return found


def test_json_lines_carry_the_run_and_nothing_shown_changes_it(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*flags, *SHORT, "--profile-steps", "2", "--eval-every", "10"]
    assert run("finetune", *words, "--log", "json", "--output", tmp_path / "json") == 0
    found = events(capsys.readouterr().out)
    metrics = json.loads((tmp_path / "json" / "metrics.json").read_text())
    assert found[0]["event"] == "start"
    assert found[-1] == {"event": "done", "command": "finetune", "run": str(tmp_path / "json"), "metrics": metrics}
    logged = list(read_steps(tmp_path / "json" / "steps.jsonl"))
    shown = [event for event in found if event["event"] == "step"]
    assert [(event["stage"], event["step"]) for event in shown] == [
        *(("search", step) for step in _readings(logged, "search")),
        *(("train", step) for step in _readings(logged, "train")),
    ]
    for event in shown:
        line = next(line for line in logged if (line["stage"], line["step"]) == (event["stage"], event["step"]))
        assert (event["loss"], event["lr"]) == (line["loss"], line["lr"])
        assert event["rows_per_second"] > 0
        assert event["tokens_per_second"] > event["rows_per_second"]
        assert event["seconds_left"] >= 0
    assert shown[-1]["seconds_left"] == 0
    last = next(event for event in reversed(shown) if event["stage"] == "search")
    assert set(last["mask_distance"]) == {"heads", "neurons"}
    assert 0 <= last["mask_distance"]["neurons"] <= 1
    assert [event["step"] for event in found if event["event"] == "evaluation"] == [10, 20]

    assert run("finetune", *flags, *SHORT, "--log", "quiet", "--output", tmp_path / "quiet") == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    assert equal(tmp_path / "json", tmp_path / "quiet")
    assert steps(tmp_path / "json") == steps(tmp_path / "quiet")
    assert (tmp_path / "json" / "scores.safetensors").read_bytes() == (
        tmp_path / "quiet" / "scores.safetensors"
    ).read_bytes()
    assert metrics["profile"].keys() == {"search", "train"}
    assert not (tmp_path / "quiet" / "profile.json").exists()


def _readings(logged: list[dict[str, Any]], stage: str) -> list[int]:
    """Steps after which the log is read: with `log_every` 5 and a checkpoint every 4 steps, those and the last."""
    last = max(line["step"] for line in logged if line["stage"] == stage)
    return [*range(4, last, 4), last]


def test_plain_lines_have_no_bars_and_auto_is_plain_without_a_terminal(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search", *flags, "--search-steps", "12", "--output", tmp_path / "run") == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("search 12/12"))
    assert re.search(r"loss \d\.\d+  [\d,]+ rows/s  [\d,]+ tokens/s  mask distance [\d.]+ [\d.]+  0:00 left$", line)
    assert "━" not in out
    assert "\x1b" not in out
    assert Display().mode == "plain"


def test_auto_is_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    assert Display().mode == "bars"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal 120 columns wide gets."""
    text = io.StringIO()
    monkeypatch.setattr(display, "console", Console(file=text, force_terminal=True, width=120, highlight=False))
    return text


def test_bars_show_loss_speed_distance_and_time_left(flags: list[str], tmp_path: Path, screen: io.StringIO) -> None:
    assert run("search", *flags, "--search-steps", "12", "--log", "bars", "--output", tmp_path / "run") == 0
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    last = [line for line in re.split(r"[\r\n]+", shown) if line.startswith("search ")][-1]
    assert re.search(
        r"12/12 +loss \d\.\d+  [\d,]+ rows/s  [\d,]+ tokens/s  mask distance [\d.]+ [\d.]+  0:00 left", last
    )


def test_a_grid_shows_the_run_inside_it_and_says_nothing_else(
    flags: list[str], tmp_path: Path, screen: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    given = dict(zip((flag[2:].replace("-", "_") for flag in flags[::2]), flags[1::2], strict=True))
    numbers = {"max_length": 16, "batch_size": 4, "align": 8, "heads": 1, "log_every": 5, "checkpoint_every": 0}
    rates = {"dense_lr": 1e-3, "lr": 2e-3, "profile_steps": 0, "method": "dense", "dense_steps": 12}
    cells = [Cell(f"sst2/dense/{seed}", {**given, **numbers, **rates, "seed": seed}) for seed in (1, 2)]
    for mode, first in (("bars", cells[:1]), ("json", cells)):
        display.mode = mode
        try:
            outcomes = run_grid(first, tmp_path / "grid")
        finally:
            display.mode = "auto"
        assert all(found.failure is None for found in outcomes.values())
    shown = screen.getvalue()
    assert "train dense" in shown
    assert "tokens/s" in shown
    assert "sst2/dense/1: accuracy" in shown
    found = events(capsys.readouterr().out)
    assert [event["event"] for event in found] == ["note", "run"]  # one was done already; no steps of the inner run
    assert found[1]["name"] == "sst2/dense/2"
    assert (found[1]["done"], found[1]["runs"]) == (2, 2)
    assert found[1]["score"] == outcomes["sst2/dense/2"].metrics["score"]  # pyright: ignore[reportOptionalSubscript]


def test_a_program_reads_the_tables_that_a_person_sees(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("pretrain", "--config", Path(__file__).parents[2] / "configs/pretrain_base.yaml", "--check", "--log")
    assert run(*words, "json") == 0
    start, table, done = events(capsys.readouterr().out)
    assert (start["event"], table["event"], done) == ("start", "table", {"event": "done", "command": "pretrain"})
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert run(*words, "plain") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert table["title"] in printed
    assert all(row[0] in printed for row in table["rows"])


def test_what_is_not_finite_or_no_json_is_null_or_text(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Display()
    shown.mode = "json"
    shown.emit("x", a=float("nan"), b=[float("inf"), 1.5], c=Path("p"), d={1: None}, e=True)
    with shown.muted():
        shown.emit("y")
    assert events(capsys.readouterr().out) == [
        {"event": "x", "a": None, "b": [None, 1.5], "c": "p", "d": {"1": None}, "e": True}
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_has_its_checkpoint_and_says_how_to_go_on(
    number: signal.Signals,
    code: int,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = EagerStep.__call__
    calls = 0

    def interrupted(self: EagerStep, batches: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), number)
        return real(self, batches)

    monkeypatch.setattr(EagerStep, "__call__", interrupted)
    words = [*flags, "--search-steps", "5", "--log", "json", "--checkpoint-every", "0"]
    assert run("search", *words, "--output", tmp_path / "run") == code
    said = capsys.readouterr()
    resume = f"earlybert search --output {tmp_path / 'run'} --resume"
    assert events(said.out)[-1] == {"event": "stopped", "code": code, "resume": resume}
    assert said.err == f"earlybert: stopped; to go on: {resume}.\n"
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert run(*resume.split()[1:], "--log", "quiet") == 0
    assert calls == 5


def test_exit_codes_of_failures(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags, "--search-steps", "3"]
    assert run("search", *words, "--log", "json", "--heads", "9", "--output", tmp_path / "bad") == 2
    said = capsys.readouterr()
    assert events(said.out)[-1]["event"] == "failed"
    assert events(said.out)[-1]["code"] == 2
    assert said.err == f"earlybert: {events(said.out)[-1]['message']}\n"
    assert run("search", *words, "--log", "loud") == 2
    assert "--log" in capsys.readouterr().err
    real = EagerStep.__call__
    monkeypatch.setattr(EagerStep, "__call__", lambda self, batches: real(self, batches) * float("inf"))
    assert run("search", *words, "--log", "quiet", "--output", tmp_path / "run") == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("earlybert: the loss is inf at step 1")


def test_no_room_for_a_profile_costs_the_profile_alone(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> Any:
        raise drive.torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(drive, "profile", full)
    assert run("search", *flags, "--search-steps", "3", "--profile-steps", "2", "--output", tmp_path / "run") == 0
    assert "no room to take a step apart" in capsys.readouterr().out
    assert (tmp_path / "run" / "scores.safetensors").exists()


def test_a_run_outlives_who_reads_its_output(flags: list[str], tmp_path: Path) -> None:
    """As in `earlybert finetune ... | head -1`."""
    words = [sys.executable, "-m", "earlybert", "finetune", *flags, "--method", "dense", "--dense-epochs", "1"]
    out = tmp_path / "run"
    with subprocess.Popen(
        [*words, "--log", "json", "--output", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "start"
        process.stdout.close()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert "Broken" not in said
    assert (out / "metrics.json").exists()


def test_without_a_terminal_tables_are_wider_than_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.delenv("COLUMNS", raising=False)
    assert Display().console.width == 120
    monkeypatch.setenv("COLUMNS", "90")
    assert Display().console.width == 90


def test_the_environment_says_what_is_shown_where_no_flag_does(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Launchers take a flag of this name for one of their own."""
    monkeypatch.setenv("EARLYBERT_LOG", "json")
    assert run("search", *flags, *SHORT, "--output", tmp_path / "one") == 0
    assert events(capsys.readouterr().out)[0]["event"] == "start"
    assert run("search", *flags, *SHORT, "--log", "quiet", "--output", tmp_path / "two") == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("EARLYBERT_LOG", "jsn")
    assert run("search", *flags, *SHORT, "--output", tmp_path / "three") == 2
    assert "unknown EARLYBERT_LOG 'jsn'; did you mean json" in capsys.readouterr().err
