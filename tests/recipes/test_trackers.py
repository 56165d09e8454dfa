"""Trackers through accelerate, without a network: what they hold is what the run folder says."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from earlybert.recipes import trackers
from earlybert.train.steplog import read_steps
from tests import warm

from .conftest import run

SHORT = ("--search-steps", "6", "--epochs", "0.5", "--profile-steps", "0", "--eval-every", "5")


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves by name, steps counted over search and training."""
    logged = [line for line in read_steps(folder / "steps.jsonl") if "loss" in line]
    curves: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(logged, start=1):
        for name, value in (
            ("loss", line["loss"]),
            ("lr", line["lr"]),
            ("rows_per_second", line["rows"] / line["seconds"]),
            ("tokens_per_second", line["tokens"] / line["seconds"]),
        ):
            curves.setdefault(f"{line['stage']}/{name}", []).append((number, value))
    return curves


def compare(folder: Path, found: dict[str, list[tuple[int, float]]]) -> None:
    for name, curve in expected(folder).items():
        assert [step for step, _ in found[name]] == [step for step, _ in curve], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in curve], rel=1e-6), name
    metrics = json.loads((folder / "metrics.json").read_text())
    assert found["final/score/accuracy"][-1][1] == pytest.approx(metrics["score"]["accuracy"])
    assert found["final/stages/train/flops"][-1][1] == pytest.approx(metrics["stages"]["train"]["flops"], rel=1e-6)
    for kind in ("heads", "neurons"):
        assert all(0 <= value <= 1 and step <= 6 for step, value in found[f"search/mask_distance_{kind}"])
    evaluated = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [value for _, value in found["train/validation_accuracy"]] == pytest.approx(
        [line["accuracy"] for line in evaluated]
    )


def test_tensorboard_holds_the_run_also_over_an_interruption(flags: list[str], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    words = [*flags, *SHORT, "--tracker", "tensorboard", "--log", "quiet"]
    assert run("search", *words, "--output", out) == 0
    assert run("draw", out, "--log", "quiet") == 0
    assert run("train", out, "--log", "quiet") == 0
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted((out / "tensorboard").rglob("events.out*")):
        events = accumulator.EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    compare(out, found)
    import yaml

    settings = yaml.safe_load(next((out / "tensorboard").rglob("hparams.yml")).read_text())
    assert settings["task"] == "sst2"
    assert settings["lr"] == 2e-3


def test_weights_and_biases_offline(flags: list[str], tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    out = tmp_path / "run"
    # In a process of its own: wandb keeps one service and one setup for all runs of a process.
    words = ["finetune", *flags, *SHORT, "--tracker", "wandb", "--log", "quiet", "--output", str(out)]
    warm.run("earlybert", *words, WANDB_MODE="offline")
    (file,) = (out / "wandb").glob("offline-run-*/run-*.wandb")
    found, settings = _wandb(file)
    compare(out, found)
    assert settings["task"] == "sst2"
    assert settings["lr"] == 2e-3


def _wandb(file: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, Any]]:
    """Curves and settings in the file of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, list[tuple[int, float]]] = {}
    settings: dict[str, Any] = {}
    for data in _chunks(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        for update in [*record.config.update, *record.run.config.update]:
            settings[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
        values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, value in values.items():
            if not name.startswith("_"):
                found.setdefault(name, []).append((values["_step"], value))
    return found, settings


def _chunks(content: bytes, block: int = 1 << 15, head: int = 7) -> Iterator[bytes]:
    """Records of a LevelDB log: blocks, and in them parts of 4 bytes checksum, 2 length, 1 kind (1 whole, 4 last)."""
    place, parts = head, b""
    while place + head <= len(content):
        if block - place % block < head:  # what is left of a block cannot hold a part
            place += block - place % block
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + head : place + head + length]
        place += head + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_a_missing_package_is_refused_before_anything_is_written(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for command in ("finetune", "search"):
        assert run(command, *flags, "--tracker", "wandb", "--output", tmp_path / "run") == 2
        err = capsys.readouterr().err
        assert "tracker wandb needs the package wandb, which is not installed; pip install wandb" in err
        assert err.count("\n") == 1
    words = [
        "--tasks",
        "[sst2]",
        "--methods",
        "[dense]",
        "--seeds",
        "[1]",
        "--tracker",
        "tensorboard",
        "--output",
        tmp_path / "run",
    ]
    assert run("compare", *[*flags[:2], *flags[4:]], *words) == 2
    assert "needs the package tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run("finetune", *flags, "--tracker", "wandbb", "--output", tmp_path / "run") == 2
    assert "unknown tracker 'wandbb'; did you mean wandb" in capsys.readouterr().err


def test_a_tracker_that_breaks_does_not_end_the_run(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(TensorBoardTracker, "log", broken)
    assert run("search", *flags, "--search-steps", "3", "--tracker", "tensorboard", "--output", tmp_path / "run") == 0
    assert capsys.readouterr().out.count("tracker tensorboard stopped (no space left)") == 1
    assert (tmp_path / "run" / "scores.safetensors").exists()


def test_a_tracker_that_cannot_start_is_one_sentence(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("no API key.\nlog in")

    monkeypatch.setattr(trackers.Accelerator, "init_trackers", refused)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    assert run("search", *flags, "--search-steps", "3", "--tracker", "wandb", "--output", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert "tracker wandb could not start (no API key)" in err
    assert "WANDB_MODE=offline" in err
    assert err.count("\n") == 1
