"""Studies of pre-training: which runs they come to, what they cost, and that every number has a run behind it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import earlybert as eb
from earlybert.anatomy import Refused
from earlybert.config.checks import BadSetting
from earlybert.config.pretrain import Pretrain
from earlybert.recipes.study import estimate
from earlybert.recipes.study.run import run_study, with_corpus
from earlybert.recipes.study.scale import read_scaled, scaled
from earlybert.recipes.study.study import Study
from earlybert.train.steplog import read_steps

PRETRAIN: dict[str, Any] = {
    "layers": 2,
    "hidden": 32,
    "attention_heads": 4,
    "intermediate": 64,
    "positions": 64,
    "precision": "no",
    "engine": "eager",
    "steps": 20,
    "second": 0,
    "length": 24,
    "batch": 8,
    "rows": 4,
    "device": "cpu",
    "search_steps": 6,
    "heads": 1,
    "neurons": 0.3,
    "align": 8,
    "eval_every": 8,
    "eval_rows": 16,
    "log_every": 4,
}
RUNS: dict[str, Any] = {
    "dense": {"method": "dense"},
    "dense 60 %": {"method": "dense", "share": 0.6},
    "ticket": {"share": 0.75},
    "broken": {"method": "dense", "lr": 1e30},
}


@pytest.fixture
def given(corpus_folder: Path, data_dir: Path) -> dict[str, Any]:
    finetune = {"data_dir": str(data_dir), "max_length": 16, "device": "cpu", "precision": "no", "dense_epochs": 1}
    return {
        "runs": RUNS,
        "pretrain": {**PRETRAIN, "corpus": str(corpus_folder)},
        "tasks": ["sst2"],
        "finetune": finetune,
        "seeds": [1, 2],
    }


def names(study: Study) -> dict[str, str]:
    cells = {row: study.pretraining(row, 1) for row in study.runs}
    return {row: cell.name for row, cell in cells.items() if cell is not None}


def test_equal_runs_of_two_studies_are_one_run() -> None:
    heads_only = Study.of({"runs": {"a": {"method": "dense"}, "b": {"neurons": 0}}, "pretrain": PRETRAIN})
    moved = {**PRETRAIN, "corpus": "elsewhere", "heads": 2, "share": 0.5, "l1_heads": 1e-2}
    other = Study.of({"runs": {"c": {"method": "dense"}, "d": {}, "e": {"heads": 1, "share": 0.8}}, "pretrain": moved})
    first, second = names(heads_only), names(other)
    assert first["a"] == second["c"]  # what only a ticket has is no part of a dense run
    assert len({first["b"], second["d"], second["e"]}) == 3
    assert names(Study.of({"runs": {"x": {"method": "dense", "lr": 1e-3}}, "pretrain": PRETRAIN}))["x"] != first["a"]
    twice = Study.of({"runs": {"one": {"method": "dense"}, "two": {"method": "dense"}}, "tasks": ["sst2"]})
    assert len(twice.cells()) == 2


def test_a_share_of_a_dense_run_is_that_share_of_both_phases() -> None:
    study = Study.of({"runs": {"all": {"method": "dense"}, "80 %": {"method": "dense", "share": 0.8}, "ticket": {}}})
    assert Pretrain(**study.settings_of("80 %", 1)).steps == 6881
    assert study.settings_of("ticket", 1).get("steps") is None
    nvidia = Study.of({"runs": study.runs, "pretrain": {"second": 1563}})
    config = Pretrain(**nvidia.settings_of("80 %", 1))
    assert (config.steps, config.second) == (6881, 1250)
    assert [study.dense_row(row) for row in study.runs] == ["all"] * 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run": {}}, "did you mean runs"),
        ({"runs": {}}, "needs runs"),
        ({"runs": {"a": {"heds": 1}}}, "did you mean heads"),
        ({"runs": {"a": {"method": "tickets"}}}, "did you mean ticket"),
        ({"runs": {"a": {}, "b": {"against": "A"}}}, "there are a, b"),
        ({"runs": {"a": {"model": "x", "heads": 3}}}, "no settings of pre-training"),
        ({"runs": {"a": {"method": "dense", "share": 0.0}}}, "share must be above 0"),
        ({"tasks": ["sst"]}, "did you mean sst2"),
        ({"finetune": {"model": "minilm"}, "tasks": ["sst2"]}, "no model of its own"),
        ({"methods": {"a": {"method": "ticket", "tune": {"lr": [1e-4]}}}, "tasks": ["sst2"]}, "does not tune"),
        ({"seeds": [1, 1]}, "each once"),
        ({"small": {}}, "say which scale"),
        ({"pretrain": {"length": "long"}}, "length must be a whole number"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        Study.of({"runs": {"a": {}}, **change})


def test_a_scale_is_merged_over_what_is_common(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seeds: [1]\npaper: {pretrain: {a: 1, b: 2}}\nsmall: {tasks: [x, y]}\n")
    text = "base: base.yaml\nruns: {one: {}}\npaper: {pretrain: {b: 3}, runs: {two: {}}}\nsmall: {tasks: [z]}\n"
    (tmp_path / "table.yaml").write_text(text)
    common = {"seeds": [1], "runs": {"one": {}}}
    expected = {**common, "pretrain": {"a": 1, "b": 3}, "runs": {"one": {}, "two": {}}}
    assert read_scaled(tmp_path / "table.yaml", "paper") == expected
    assert read_scaled(tmp_path / "table.yaml", "small") == {**common, "tasks": ["z"]}
    with pytest.raises(BadSetting, match="did you mean small"):
        scaled({}, "smal")
    with pytest.raises(BadSetting, match="cannot be read"):
        read_scaled(tmp_path / "none.yaml", "small")


def test_a_search_alone_costs_its_steps() -> None:
    config = Pretrain(**{**PRETRAIN, "method": "ticket"})
    whole = estimate.cost(config, 200)
    search = estimate.cost(config, 200, search_only=True)
    assert 0 < search.flops < whole.flops
    assert whole.parameters == search.parameters
    dense = estimate.cost(Pretrain(**{**PRETRAIN, "method": "dense"}), 200)
    assert search.flops == config.search_steps * dense.flops / config.steps
    by_the_clock = estimate.cost(Pretrain(**{**PRETRAIN, "method": "ticket", "minutes": 2.0}), 200)
    assert by_the_clock == estimate.Cost(search.flops, search.parameters, 2.0)


def test_a_study_by_the_clock() -> None:
    runs = {"dense": {"method": "dense"}, "80 %": {"method": "dense", "share": 0.8}, "ticket": {"share": 0.5}}
    study = Study.of({"runs": runs, "pretrain": {**PRETRAIN, "minutes": 10}, "tasks": ["sst2"]})
    assert [Pretrain(**study.settings_of(row, 1)).minutes for row in runs] == [10.0, 8.0, 10.0]
    assert {Pretrain(**study.settings_of(row, 1)).steps for row in runs} == {20}
    assert {study.dense_row(row) for row in runs} == {"dense"}
    said = estimate.estimate(study)
    assert said.startswith("3 runs of pre-training by the clock, 28 minutes, the longest 10; at least")
    assert said.endswith("3 runs of fine-tuning, not counted.")
    mixed = Study.of({"runs": {**runs, "steps": {"method": "dense", "minutes": None}}, "pretrain": study.pretrain})
    assert [mixed.dense_row(row) for row in mixed.runs] == ["dense", "dense", "dense", "steps"]
    said = estimate.estimate(mixed)
    assert said.startswith("1 run of pre-training, ")
    assert "; 3 runs of pre-training by the clock, 28 minutes" in said


def test_long_runs_are_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study.of({"runs": {"dense": {"method": "dense"}}, "pretrain": PRETRAIN})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    estimate.refuse_without_device(study)
    monkeypatch.setattr(estimate, "MOST_ON_CPU", 1e6)
    with pytest.raises(Refused, match=r"needs a GPU.*H100-hours"):
        estimate.refuse_without_device(study)
    estimate.refuse_without_device(study, force=True)
    by_the_clock = Study.of({"runs": {"ticket": {}}, "pretrain": {**PRETRAIN, "minutes": 1}})
    estimate.refuse_without_device(by_the_clock)
    monkeypatch.setattr(estimate, "CPU_RATE", 1e3)
    with pytest.raises(Refused, match=r"the search alone would take about .* of a run's 1 minutes"):
        estimate.refuse_without_device(by_the_clock)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    estimate.refuse_without_device(study)
    estimate.refuse_without_device(by_the_clock)


def test_a_study_without_text_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    study = Study.of({"runs": {"dense": {"method": "dense"}}, "pretrain": PRETRAIN})
    with pytest.raises(Refused, match="which text"):
        run_study(study, tmp_path / "out")
    with pytest.raises(Refused, match="holds no corpus"):
        with_corpus(study, tmp_path / "corpus")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_number_has_a_run_behind_it_and_is_run_once(given: dict[str, Any], tmp_path: Path) -> None:
    result = run_study(Study.of(given), tmp_path / "one", runs=tmp_path / "runs")
    rows = {row.name: row for row in result.rows}
    assert list(rows) == list(RUNS)
    assert json.loads((tmp_path / "one" / "study.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    text = (tmp_path / "one" / "study.md").read_text()
    assert "failed: broken, pre-training, seed 1: the loss is" in text
    assert (tmp_path / "one" / "losses.svg").exists()

    def metrics(row: str, what: str, seed: int) -> dict[str, Any]:
        return json.loads((tmp_path / "runs" / rows[row].folders[f"{what}, seed {seed}"] / "metrics.json").read_text())

    for name in ("dense", "dense 60 %", "ticket"):
        row, before = rows[name], [metrics(name, "pretrain", seed) for seed in (1, 2)]
        dense = [metrics("dense", "pretrain", seed) for seed in (1, 2)]
        assert row.pretrained is not None
        assert row.pretrained.mlm_loss == pytest.approx(np.mean([each["score"]["mlm_loss"] for each in before]))
        ratios = [mine["flops"] / theirs["flops"] for mine, theirs in zip(before, dense, strict=True)]
        assert row.pretrained.flops_of_dense == pytest.approx(np.mean(ratios))
        after = [metrics(name, "sst2", seed)["score"]["accuracy"] for seed in (1, 2)]
        assert row.by_seed["sst2"] == dict(zip((1, 2), after, strict=True))
        assert row.mean == pytest.approx(np.mean(after))
        assert row.curve[-1]["mlm_loss"] == before[0]["score"]["mlm_loss"]
    assert rows["dense 60 %"].pretrained is not None
    assert rows["dense 60 %"].pretrained.flops_of_dense == pytest.approx(0.6)
    ticket = rows["ticket"]
    assert ticket.pretrained is not None
    assert (ticket.pretrained.search_steps, ticket.pretrained.train_steps) == (6, 15)
    assert ticket.pretrained.heads_kept == [3, 3]
    assert ticket.curve[-1]["step"] == 21
    assert ticket.mean is not None
    assert rows["dense"].mean is not None
    assert ticket.change == pytest.approx(ticket.mean / rows["dense"].mean - 1)
    tuned = tmp_path / "runs" / ticket.folders["sst2, seed 1"]
    assert metrics("ticket", "sst2", 1)["ticket"]["heads_kept"] == [3, 3]  # it began with the cut model
    assert not list((tuned / "model").glob("*.safetensors"))
    assert eb.load(tmp_path / "runs" / ticket.folders["pretrain, seed 1"] / "model")
    broken = rows["broken"]
    assert (broken.pretrained, broken.mean, broken.scores) == (None, None, {"sst2": None})
    assert len(broken.failures) == 4

    # another table with one of these runs, and one of them done again
    dates = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("metrics.json")}
    again = {**given, "runs": {"BERT": {"method": "dense"}, "ticket": {"share": 0.75}}}
    shutil.rmtree(tmp_path / "runs" / ticket.folders["pretrain, seed 2"])
    second = run_study(Study.of(again), tmp_path / "two", runs=tmp_path / "runs")
    changed = {str(path.relative_to(tmp_path / "runs").parent) for path, date in dates.items() if path.stat().st_mtime_ns != date}  # fmt: skip
    assert changed == {ticket.folders[f"{what}, seed 2"] for what in ("pretrain", "sst2")}
    assert second.rows[0].by_seed == rows["dense"].by_seed


@pytest.mark.slow
def test_rows_by_the_clock_take_the_same_time(given: dict[str, Any], tmp_path: Path) -> None:
    timed = {"minutes": 0.05, "search_steps": 4, "steps": 8601}
    runs = {name: RUNS[name] for name in ("dense", "ticket")}
    result = run_study(
        Study.of({**given, "runs": runs, "pretrain": {**given["pretrain"], **timed}, "seeds": [1], "tasks": []}),
        tmp_path / "out",
    )
    for row in result.rows:
        folder = tmp_path / "out" / "runs" / row.folders["pretrain, seed 1"]
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["elapsed"] == pytest.approx(
            3.0, abs=0.6
        )  # seconds; the step that the time ran out in is finished
        assert row.curve[-1]["seconds"] == metrics["elapsed"]
        assert row.pretrained is not None
        assert row.pretrained.search_steps == (4 if row.name == "ticket" else 0)
        assert row.pretrained.train_steps > 4


@pytest.mark.slow
def test_a_search_alone_gives_mask_distances(given: dict[str, Any], tmp_path: Path) -> None:
    runs = {"search": {"method": "search", "search_steps": 12}}
    result = run_study(Study.of({**given, "runs": runs, "seeds": [1], "tasks": []}), tmp_path / "out")
    (row,) = result.rows
    folder = tmp_path / "out" / "runs" / row.folders["pretrain, seed 1"]
    assert not (folder / "model").exists()
    history = eb.History(folder / "history.bin")
    assert len(history) == 12 == sum(line["stage"] == "search" for line in read_steps(folder / "steps.jsonl"))
    for kind in ("heads", "neurons"):
        found = row.distances[kind]
        assert found["steps"] == list(range(1, 13))
        remove = PRETRAIN[kind]
        expected = [history.distance(step, 12, kind, remove).overall for step in range(1, 13)]
        assert found["to_last"] == pytest.approx(expected)
        assert found["to_next"] == pytest.approx(
            [history.distance(s, s + 1, kind, remove).overall for s in range(1, 12)]
        )
    figures = {file.stem for file in (tmp_path / "out").glob("*.svg")}
    assert figures >= {"mask-distance", "mask-distance-heads", "mask-distance-neurons", "mask-distance-neurons-layer-1"}
    stamp = (folder / "search.json").stat().st_mtime_ns
    run_study(result.study, tmp_path / "out")
    assert (folder / "search.json").stat().st_mtime_ns == stamp
