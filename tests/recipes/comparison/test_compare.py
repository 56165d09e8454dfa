"""A comparison from the command line: the grid, its tables, going on, failures, bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from earlybert.recipes import compare as comparing
from earlybert.recipes import finetune as recipe
from earlybert.recipes import grid
from earlybert.recipes.statistics import difference
from earlybert.report.frontier import Point, frontier
from earlybert.tasks import Predictions

from ..conftest import run
from .conftest import METHODS, read


@pytest.fixture
def done(given: Path, tmp_path: Path) -> Path:
    """A finished comparison, for a test that changes it."""
    assert run("compare", "--config", given, "--output", tmp_path / "out") == 0
    return tmp_path / "out"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def seen(given: Path, shared: Path) -> Path:
    """The same for tests that only look at it."""
    if not (shared / "out").exists():
        assert run("compare", "--config", given, "--output", shared / "out") == 0
    return shared / "out"


def test_every_number_has_a_run_behind_it(seen: Path) -> None:
    verdicts = read(seen)["verdicts"]
    assert list(verdicts) == list(METHODS)
    folders = {"Ticket, uniform": "ticket-uniform", "dense_same_flops": "dense-same-flops"}
    metrics = {
        (row, seed): json.loads((seen / "sst2" / folders.get(row, row) / f"seed-{seed}" / "metrics.json").read_text())
        for row in METHODS
        for seed in (1, 2)
    }
    for row in METHODS:
        found = verdicts[row]["sst2"]
        assert found["scores"] == {str(seed): metrics[row, seed]["score"]["accuracy"] for seed in (1, 2)}
        for what in ("flops", "seconds"):
            ratios = [metrics[row, seed][what] / metrics["dense", seed][what] for seed in (1, 2)]
            assert found[what] == pytest.approx(np.mean(ratios))
        ratios = [
            metrics[row, seed]["flops_a_token"]["after"] / metrics["dense", seed]["flops_a_token"]["before"]
            for seed in (1, 2)
        ]
        assert found["forward"] == pytest.approx(np.mean(ratios))
        assert (found["forward"] < 0.95) == (not row.startswith("dense"))
        parts = found["split"]
        whole = parts["fewer_epochs"] + parts["smaller_network"] + parts["engine"] + parts["search"]
        assert whole == pytest.approx(1 - found["seconds"])
    assert verdicts["dense"]["sst2"]["rival"] is None
    assert verdicts["dense_same_flops"]["sst2"]["rival"] == "dense"
    assert verdicts["ticket"]["sst2"]["rival"] == "dense_same_flops"
    assert 0.9 < verdicts["ticket"]["sst2"]["rival_cost"] <= 1

    ours, theirs, full = (
        [Predictions.load(seen / "sst2" / row / f"seed-{seed}" / "predictions.safetensors") for seed in (1, 2)]
        for row in ("ticket", "dense-same-flops", "dense")
    )
    for what, others in (("difference", theirs), ("to_full", full)):
        again = difference(
            [each.values.astype(float) for each in ours],
            [each.values.astype(float) for each in others],
            ours[0].labels.astype(float),
            "accuracy",
            margin=0.003,
        )
        assert verdicts["ticket"]["sst2"][what] == pytest.approx(again.to_dict())
    tables = (seen / "compare.md").read_text()
    assert "Difference to the dense model at the same cost" in tables
    assert "The smallest difference that every row would have shown" in tables
    assert f"{100 * np.mean(list(verdicts['ticket']['sst2']['scores'].values())):.2f} ±" in tables
    assert "Difference to dense, whose training costs 1" in tables
    assert verdicts["dense"]["sst2"]["to_full"] is None
    assert verdicts["dense_same_flops"]["sst2"]["to_full"] == verdicts["dense_same_flops"]["sst2"]["difference"]
    svg = (seen / "compare.svg").read_text()
    assert "<!-- training FLOPs, of dense -->" in svg
    assert "<svg" in svg
    assert all(row in svg for row in METHODS)
    inference = read(seen)["inference_ms_per_row"]["sst2"]
    assert set(inference) == set(METHODS)
    assert inference["dense"] == inference["dense_same_flops"], "one network is timed once"
    assert inference["dense"] != inference["ticket"]


def test_seeds_are_paired_and_models_of_later_seeds_go(seen: Path) -> None:
    first = {
        row: (seen / "sst2" / row / "seed-1" / "steps.jsonl").read_text().splitlines()[0]
        for row in ("dense", "dense-same-flops")
    }
    losses = [json.loads(line)["loss"] for line in first.values()]
    assert losses[0] == losses[1]  # same data, same head, same dropout
    assert (seen / "sst2" / "dense" / "seed-1" / "model" / "model.safetensors").exists()
    assert not (seen / "sst2" / "dense" / "seed-2" / "model" / "model.safetensors").exists()
    assert (seen / "sst2" / "dense" / "seed-2" / "predictions.safetensors").exists()


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
    assert run("compare", "--config", given, "--seeds", "[1, 2, 3]", "--warmup", "0.5", "--output", done) == 2
    assert "warmup" not in (done / "compare.yaml").read_text()  # what is refused changes nothing
    assert run("compare", "--config", given, "--offline", "--output", done) == 0  # changes no result


def test_times_are_left_out_where_they_would_mean_nothing(given: Path, done: Path) -> None:
    before = read(done)
    assert run("compare", "--config", given, "--times", "false", "--output", done) == 0
    found = read(done)
    assert found["inference_ms_per_row"] == {}
    assert found["verdicts"].keys() == before["verdicts"].keys()
    for row, by_task in found["verdicts"].items():
        assert by_task == {"sst2": {**before["verdicts"][row]["sst2"], "seconds": None, "split": None}}
    tables = (done / "compare.md").read_text()
    assert "Times were left out (times: false)." in tables
    assert re.search(
        r"^\| ticket \| 0\.\d+ \| - \| - \| - \| - \| - \| 0\.\d+ \| 0\.\d+ \| - \|$", tables, re.MULTILINE
    )
    assert run("compare", "--config", given, "--output", done) == 0
    assert read(done) == before


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


def test_input_that_no_run_can_use_is_refused_before_the_first(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for change, why in (
        ({"model": str(tmp_path / "nothing")}, "nothing"),
        ({"tasks": {"mine": {"train_file": str(tmp_path / "own.csv"), "text": "sentence"}}}, "no column .sentence."),
    ):
        (tmp_path / "own.csv").write_text("text,label\nwarm,1\ncold,0\n")
        plain = {**yaml.safe_load(given.read_text()), **change}
        if "tasks" in change:
            plain.pop("data_dir")
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(plain))
        assert run("compare", "--config", tmp_path / "wrong.yaml", "--output", out) == 2
        assert re.search(why, capsys.readouterr().err)
        assert not out.exists()


def test_where_every_run_failed_no_table_is_written(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise grid.Diverged("the loss is nan at step 3; lower the learning rate.")

    monkeypatch.setattr(recipe, "finetune", failing)
    assert run("compare", "--config", given, "--output", tmp_path / "out") == 2
    assert "every run failed, so there is nothing to compare; the first one: the loss is nan" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir() if file.is_file()] == ["compare.yaml"]


def test_the_picture_names_what_costs_are_relative_to() -> None:
    """Without the full dense run that is another row."""
    panels = {"sst2": {"best": Point(1.0, 80.0, 0.5, False)}}
    svg = frontier(panels, reference="best")
    assert b"<!-- training FLOPs, of best -->" in svg
    assert frontier(panels, reference="best") == svg


@pytest.mark.slow
def test_two_at_once_give_what_one_by_one_gives(given: Path, seen: Path, tmp_path: Path) -> None:
    assert run("compare", "--config", given, "--jobs", "2", "--output", tmp_path / "both") == 0
    one, both = read(seen)["verdicts"], read(tmp_path / "both")["verdicts"]
    assert {row: by["sst2"]["scores"] for row, by in one.items()} == {
        row: by["sst2"]["scores"] for row, by in both.items()
    }
    assert "Runs shared the machine" in (tmp_path / "both" / "compare.md").read_text()


def test_a_folder_that_is_something_else_is_left_alone(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    assert run("compare", "--config", given, "--output", tmp_path / "out") == 2
    assert "is not a comparison" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_setting_that_was_taken_back_is_noticed(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {**yaml.safe_load(given.read_text()), "methods": ["dense"], "seeds": [1]}
    given.write_text(yaml.safe_dump({**plain, "warmup": 0.5}))
    assert run("compare", "--config", given, "--output", tmp_path / "out") == 0
    given.write_text(yaml.safe_dump(plain))
    assert run("compare", "--config", given, "--output", tmp_path / "out") == 2
    assert "was made with other settings (warmup)" in capsys.readouterr().err


def test_a_rival_is_done_again_when_its_ticket_is(given: Path, tmp_path: Path) -> None:
    plain = {**yaml.safe_load(given.read_text()), "methods": ["dense", "ticket", "dense_same_flops"], "seeds": [1]}
    plain["dense_steps"] = 30
    given.write_text(yaml.safe_dump(plain))
    out = tmp_path / "out"
    assert run("compare", "--config", given, "--output", out) == 0
    verdicts = read(out)["verdicts"]
    assert 0.9 < verdicts["ticket"]["sst2"]["rival_cost"] <= 1  # the ticket's cost, not the dense run's 30 steps
    metrics = out / "sst2" / "ticket" / "seed-1" / "metrics.json"
    later = json.loads(metrics.read_text())
    later["environment"]["date"] = "1999-01-01T00:00:00+00:00"  # done again since, though the clock went backwards
    metrics.write_text(json.dumps(later))
    rival = out / "sst2" / "dense-same-flops" / "seed-1" / "steps.jsonl"
    before = rival.stat().st_mtime_ns
    assert run("compare", "--config", given, "--output", out) == 0
    assert rival.stat().st_mtime_ns != before
    before = rival.stat().st_mtime_ns
    assert run("compare", "--config", given, "--output", out) == 0
    assert rival.stat().st_mtime_ns == before  # and once is enough


def test_names_stay_inside_the_folder_and_print_as_they_are(
    given: Path, tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gzip

    text = gzip.decompress((data_dir / "sst2" / "train.jsonl.gz").read_bytes())
    (tmp_path / "own.jsonl").write_bytes(text)
    plain = yaml.safe_load(given.read_text())
    plain.pop("data_dir")
    plain |= {"tasks": {"../../climbed": {"train_file": str(tmp_path / "own.jsonl"), "text": "sentence"}}}
    plain |= {"methods": {"[/b] dense": {"method": "dense"}}, "seeds": [1]}
    given.write_text(yaml.safe_dump(plain))
    assert run("compare", "--config", given, "--output", tmp_path / "a" / "b") == 0
    assert (tmp_path / "a" / "b" / "climbed" / "b-dense" / "seed-1" / "metrics.json").exists()
    assert not (tmp_path / "climbed").exists()
    assert "[/b] dense" in capsys.readouterr().out


def test_whoever_stops_it_is_told_how_to_go_on(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = recipe.finetune

    def stopped(start: recipe.Start, **options: Any) -> Any:
        if start.run.config.method == "ticket":
            raise KeyboardInterrupt("earlybert finetune --resume")
        return real(start, **options)

    monkeypatch.setattr(recipe, "finetune", stopped)
    out = tmp_path / "out"
    assert run("compare", "--config", given, "--seeds", "[1]", "--output", out) == 130
    command = f"earlybert compare --config {out / 'compare.yaml'} --output {out}"
    assert f"to go on: {command}" in capsys.readouterr().err
    monkeypatch.setattr(recipe, "finetune", real)
    assert run(*command.split()[1:]) == 0
    assert (out / "compare.md").exists()


def test_a_stopped_comparison_goes_on_with_what_was_added(
    done: Path, given: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparing, "run_grid", stopped)
        assert run("compare", "--config", given, "--seeds", "[1,2,3]", "--output", done) == 130
    assert f"earlybert compare --config {done / 'compare.yaml'} --output {done}" in capsys.readouterr().err
    assert yaml.safe_load((done / "compare.yaml").read_text())["seeds"] == [1, 2, 3]
