"""A comparison from the command line: the grid, its tables, going on, failures, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from earlybert.config import BadSetting, typed
from earlybert.recipes import finetune as recipe
from earlybert.recipes import grid
from earlybert.recipes.comparison import Comparison
from earlybert.recipes.statistics import difference
from earlybert.recipes.versus import saved
from earlybert.tasks import Predictions

from .conftest import run

METHODS = {
    "dense": None,
    "dense_same_flops": None,
    "ticket": None,
    "Ticket, uniform": {"method": "uniform"},
    "random": None,
}


@pytest.fixture
def given(flags: list[str], tmp_path: Path) -> Path:
    settings = {
        flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)
    }
    task = settings.pop("task")
    plain = {name: yaml.safe_load(value) if name not in ("precision",) else value for name, value in settings.items()}
    plain |= {"dense_epochs": 1, "epochs": 1, "search_steps": 6, "tasks": [task], "seeds": [1, 2], "methods": METHODS}
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(plain, sort_keys=False))
    return file


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "compare.json").read_text())


@pytest.fixture
def done(given: Path, tmp_path: Path) -> Path:
    assert run("compare", "--config", given, "--output", tmp_path / "out") == 0
    return tmp_path / "out"


def test_every_number_has_a_run_behind_it(done: Path) -> None:
    verdicts = read(done)["verdicts"]
    assert list(verdicts) == list(METHODS)
    folders = {"Ticket, uniform": "ticket-uniform", "dense_same_flops": "dense-same-flops"}
    metrics = {
        (row, seed): json.loads((done / "sst2" / folders.get(row, row) / f"seed-{seed}" / "metrics.json").read_text())
        for row in METHODS
        for seed in (1, 2)
    }
    for row in METHODS:
        found = verdicts[row]["sst2"]
        assert found["scores"] == {str(seed): metrics[row, seed]["score"]["accuracy"] for seed in (1, 2)}
        for what in ("flops", "seconds"):
            ratios = [metrics[row, seed][what] / metrics["dense", seed][what] for seed in (1, 2)]
            assert found[what] == pytest.approx(np.mean(ratios))
        parts = found["split"]
        whole = parts["fewer_epochs"] + parts["smaller_network"] + parts["engine"] + parts["search"]
        assert whole == pytest.approx(1 - found["seconds"])
    assert verdicts["dense"]["sst2"]["rival"] is None
    assert verdicts["dense_same_flops"]["sst2"]["rival"] == "dense"
    assert verdicts["ticket"]["sst2"]["rival"] == "dense_same_flops"
    assert 0.9 < verdicts["ticket"]["sst2"]["rival_cost"] <= 1

    paths = {row: [done / "sst2" / row / f"seed-{seed}" for seed in (1, 2)] for row in ("ticket", "dense-same-flops")}
    ours, theirs = ([Predictions.load(path / "predictions.safetensors") for path in paths[row]] for row in paths)
    again = difference(
        [each.values.astype(float) for each in ours],
        [each.values.astype(float) for each in theirs],
        ours[0].labels.astype(float),
        "accuracy",
        margin=0.003,
    )
    assert verdicts["ticket"]["sst2"]["difference"] == pytest.approx(again.to_dict())
    tables = (done / "compare.md").read_text()
    assert "Difference to the dense model at the same cost" in tables
    assert "The smallest difference that could have been detected" in tables
    assert f"{100 * np.mean(list(verdicts['ticket']['sst2']['scores'].values())):.2f} ±" in tables
    svg = (done / "compare.svg").read_text()
    assert "<svg" in svg
    assert all(row.replace("_", "_") in svg or row in svg for row in METHODS)
    assert set(read(done)["inference_ms_per_row"]["sst2"]) == set(METHODS)


def test_seeds_are_paired_and_models_of_later_seeds_go(done: Path) -> None:
    first = {
        row: (done / "sst2" / row / "seed-1" / "steps.jsonl").read_text().splitlines()[0]
        for row in ("dense", "dense-same-flops")
    }
    losses = [json.loads(line)["loss"] for line in first.values()]
    assert losses[0] == losses[1]  # same data, same head, same dropout
    assert (done / "sst2" / "dense" / "seed-1" / "model" / "model.safetensors").exists()
    assert not (done / "sst2" / "dense" / "seed-2" / "model" / "model.safetensors").exists()
    assert (done / "sst2" / "dense" / "seed-2" / "predictions.safetensors").exists()


def test_it_goes_on_where_it_stopped_and_may_grow(
    given: Path, done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    real = recipe.finetune

    def counted(start: recipe.Start, *, compare: bool, page: bool) -> Any:
        started.append(str(start.run.path.relative_to(done)))
        return real(start, compare=compare, page=page)

    monkeypatch.setattr(recipe, "finetune", counted)
    before = read(done)
    assert run("compare", "--config", given, "--output", done) == 0
    assert started == []
    assert read(done)["verdicts"] == before["verdicts"]
    (done / "sst2" / "random" / "seed-2" / "metrics.json").unlink()
    assert run("compare", "--config", given, "--seeds", "[1, 2, 3]", "--output", done) == 0
    assert [name for name in started if "seed-3" not in name] == ["sst2/random/seed-2"]
    assert len(started) == 1 + len(METHODS)
    assert "runs are done already" in capsys.readouterr().out
    assert run("compare", "--config", given, "--lr", "0.01", "--output", done) == 2
    assert "was made with other settings (lr)" in capsys.readouterr().err


def test_a_failure_is_shown_and_tried_again(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    real = recipe.finetune

    def failing(start: recipe.Start, *, compare: bool, page: bool) -> Any:
        if start.run.config.method == "ticket" and start.run.config.seed == 2:
            raise grid.Diverged("the loss is nan at step 3; lower the learning rate.")
        return real(start, compare=compare, page=page)

    monkeypatch.setattr(recipe, "finetune", failing)
    assert run("compare", "--config", given, "--output", out) == 0
    said = capsys.readouterr().out
    assert "the loss is nan at step 3" in said
    found = read(out)["verdicts"]["ticket"]["sst2"]
    assert list(found["scores"]) == ["1"]
    assert "nan" in found["failures"]["2"]
    assert (
        "needs sst2/ticket/seed-2, which failed" in read(out)["verdicts"]["dense_same_flops"]["sst2"]["failures"]["2"]
    )
    assert "(1 failed)" in (out / "compare.md").read_text()
    monkeypatch.setattr(recipe, "finetune", real)
    assert run("compare", "--config", given, "--output", out) == 0
    assert read(out)["verdicts"]["ticket"]["sst2"]["failures"] == {}
    assert not list(out.rglob("failed.json"))


@pytest.mark.slow
def test_two_at_once_give_what_one_by_one_gives(given: Path, done: Path, tmp_path: Path) -> None:
    assert run("compare", "--config", given, "--jobs", "2", "--output", tmp_path / "both") == 0
    one, both = read(done)["verdicts"], read(tmp_path / "both")["verdicts"]
    assert {row: by["sst2"]["scores"] for row, by in one.items()} == {
        row: by["sst2"]["scores"] for row, by in both.items()
    }
    assert "runs shared the machine" in (tmp_path / "both" / "compare.md").read_text()


def test_the_engine_is_told_apart_from_the_ticket() -> None:
    def metrics(seconds: float, steps: int, search: float = 0.0) -> dict[str, Any]:
        train = {"steps": steps, "seconds": seconds, "mean_step_seconds": seconds / steps}
        return {"seconds": seconds + search, "flops": 1, "stages": {"train": train}}

    parts = saved(metrics(100.0, 100), metrics(8.0, 40, search=2.0), same_engine=metrics(40.0, 100))
    assert parts["fewer_epochs"] == pytest.approx(0.6)
    assert parts["engine"] == pytest.approx(40 * (1.0 - 0.4) / 100)
    assert parts["smaller_network"] == pytest.approx(40 * (0.4 - 0.2) / 100)
    assert parts["search"] == pytest.approx(-0.02)
    assert parts["time"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["dense", "tiket"]}, "unknown method 'tiket'; did you mean ticket"),
        ({"tasks": ["ssst2"]}, "unknown task 'ssst2'; did you mean sst2"),
        ({"seeds": [1, 1]}, "seeds are repeated (1)"),
        ({"seeds": []}, "a comparison needs seeds"),
        ({"methods": ["dense", "dense"]}, "method 'dense' is named twice"),
        ({"methods": ["dense", "inverted"]}, "inverted takes something from a ticket"),
        (
            {"methods": {"dense": None, "x": {"method": "inverted", "like": "tikcet"}, "ticket": None}},
            "did you mean ticket",
        ),
        ({"methods": {"dense": {"lrr": 3}}}, "unknown setting 'lrr'; did you mean lr"),
        ({"methods": {"dense": {"lr": "much"}}}, "lr must be float, got 'much'"),
        ({"methods": {"A b": {"method": "dense"}, "a-b": {"method": "dense"}}}, "make the same folder"),
        ({"methods": {"dense": {"dense_epochs": -1}}}, "dense_epochs must be above 0"),
        ({"margin": -1}, "margin must be at least 0"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"epochz": 2}, "unknown setting 'epochz'; did you mean epochs"),
    ],
)
def test_bad_input_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    good = {"tasks": ["sst2"], "methods": ["dense", "ticket"], "seeds": [1]}
    Comparison.of(good)
    with pytest.raises(BadSetting, match=said.replace("(", r"\(").replace(")", r"\)")):
        Comparison.of({**good, **changes})


def test_yaml_values_become_what_settings_want() -> None:
    assert typed({"lr": "5e-5", "heads": 4, "epochs": 2, "task": None, "weights": "keep"}) == {
        "lr": 5e-5,
        "heads": 4,
        "epochs": 2.0,
        "task": None,
        "weights": "keep",
    }
    with pytest.raises(BadSetting, match=r"batch_size must be int, got 2\.5"):
        typed({"batch_size": 2.5})
    with pytest.raises(BadSetting, match="unknown weights 'kept'; did you mean keep"):
        typed({"weights": "kept"})


def test_a_folder_that_is_something_else_is_left_alone(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    assert run("compare", "--config", given, "--output", tmp_path / "out") == 2
    assert "is not a comparison" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.tex"]
