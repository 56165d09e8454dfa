"""What a comparison is said to take, against what it then took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from earlybert.recipes.comparison.comparison import Comparison, cell_name
from earlybert.recipes.comparison.forecast import forecast
from earlybert.train.steplog import totals

from ..conftest import run, tiny_flags

ROWS = {
    "dense": None,
    "dense_same_flops": {"like": "kept"},
    "kept": {"method": "ticket", "weights": "keep", "tune": {"lr": [1e-3, 2e-3]}},
    "random": None,
    "layerdrop": None,
    "its rival": {"method": "dense_same_flops", "like": "layerdrop"},
}


def settings(model_folder: Path, data_dir: Path) -> dict[str, object]:
    flags = tiny_flags(model_folder, data_dir)
    plain: dict[str, object] = {
        flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)
    }
    numbers = {name: int(str(plain[name])) for name in ("max_length", "batch_size", "align", "heads")}
    named = {name: str(plain[name]) for name in ("model", "data_dir", "device", "precision")}
    return {**named, **numbers, "dense_epochs": 2, "epochs": 1, "search_steps": 6, "checkpoint_every": 0}


def test_it_says_what_runs_then_take(model_folder: Path, data_dir: Path, tmp_path: Path) -> None:
    rows = {name: {k: v for k, v in (given or {}).items() if k != "tune"} for name, given in ROWS.items()}
    given = {"tasks": ["sst2"], "methods": rows, "seeds": [1], **settings(model_folder, data_dir)}
    comparison = Comparison.of(given)
    said = {row[0]: row for row in forecast(comparison).rows}
    config = tmp_path / "given.yaml"
    config.write_text(json.dumps(given))
    assert run("compare", "--config", config, "--output", tmp_path / "out") == 0
    for row in rows:
        stages = totals(tmp_path / "out" / cell_name("sst2", row, 1) / "steps.jsonl")
        taken = sum(stages[name].steps for name in stages if name != "draw")
        assert int(said[row][2]) == pytest.approx(taken, abs=1), row
    metrics = {
        row: json.loads((tmp_path / "out" / cell_name("sst2", row, 1) / "metrics.json").read_text())["flops"]
        for row in rows
    }
    assert metrics["its rival"] == pytest.approx(metrics["layerdrop"], rel=0.04)  # in whole steps
    for row in rows:
        assert float(said[row][4]) == pytest.approx(metrics[row] / metrics["dense"], abs=0.06), row


def test_trials_of_tuning_and_seeds_count(model_folder: Path, data_dir: Path) -> None:
    given = {"tasks": ["sst2"], "methods": ROWS, "seeds": [1, 2, 3], **settings(model_folder, data_dir)}
    said = {row[0]: row for row in forecast(Comparison.of(given)).rows}
    assert said["kept"][1] == "5"  # 3 seeds and 2 trials
    assert said["random"][1] == "3"
    assert int(said["together"][1]) == 3 * len(ROWS) + 2
    assert int(said["kept"][2]) == pytest.approx((3 + 2 * 0.9) * 24, abs=2)


def test_trials_cost_what_they_try_and_what_they_stand_on(model_folder: Path, data_dir: Path) -> None:
    rows = {
        "dense": None,
        "ticket": None,
        "uniform": {"tune": {"epochs": [1, 3], "lr": [1e-3, 2e-3]}},
    }
    given = {"tasks": ["sst2"], "methods": rows, "seeds": [1, 2], **settings(model_folder, data_dir)}
    said = {row[0]: row for row in forecast(Comparison.of(given)).rows}
    assert [said[row][1] for row in rows] == ["2", "3", "6"]  # a trial of uniform needs a ticket on its part of train
    assert int(said["ticket"][2]) == pytest.approx((2 + 0.9) * (6 + 24), abs=2)
    assert int(said["uniform"][2]) == pytest.approx(2 * (6 + 24) + 0.9 * (4 * 6 + 2 * 24 + 2 * 72), abs=4)


def test_what_is_like_a_ticket_has_its_search_and_its_widths(model_folder: Path, data_dir: Path) -> None:
    rows = {"dense": None, "wide": {"method": "ticket", "heads": 3, "neurons": 0.8, "search_steps": 12}}
    rows |= {"uniform": {"like": "wide"}}
    given = {"tasks": ["sst2"], "methods": rows, "seeds": [1], **settings(model_folder, data_dir)}
    said = {row[0]: row for row in forecast(Comparison.of(given)).rows}
    assert said["uniform"][1:] == said["wide"][1:]


def test_nothing_is_run(model_folder: Path, data_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "given.yaml"
    given = {"tasks": ["sst2"], "methods": ["dense", "random"], "seeds": [1], **settings(model_folder, data_dir)}
    config.write_text(json.dumps(given))
    assert run("compare", "--config", config, "--check", "--output", tmp_path / "out") == 0
    assert not (tmp_path / "out").exists()


def test_later_cuts_leave_more_to_train(model_folder: Path, data_dir: Path) -> None:
    rows = {name: {"method": "fisher_searched", "weights": "keep", "cuts": cuts, "neurons": 0.5}
            for name, cuts in (("once", 1), ("gradual", 3))}  # fmt: skip
    given = {"tasks": ["sst2"], "methods": {"dense": None, **rows}, "seeds": [1], **settings(model_folder, data_dir)}
    said = {row[0]: row for row in forecast(Comparison.of(given)).rows}
    assert said["once"][2] == said["gradual"][2]
    assert float(said["once"][4]) < float(said["gradual"][4]) < float(said["dense"][4])
