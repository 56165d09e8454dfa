"""Values that are tried on a part of train before the runs that count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from earlybert.anatomy import Refused
from earlybert.recipes import grid
from earlybert.recipes.comparison import tuning
from earlybert.recipes.comparison.comparison import Comparison

from ..conftest import run
from .conftest import read


def test_tuning_is_on_train_alone_and_its_choice_is_used(given: Path, tmp_path: Path) -> None:
    plain = yaml.safe_load(given.read_text())
    lists = {"lr": [1.0e-6, 5.0e-3]}
    plain |= {"methods": {"dense": None, "ticket": {"tune": lists}, "dense_same_flops": {"tune": lists}}, "seeds": [1]}
    plain |= {"epochs": 6}
    given.write_text(yaml.safe_dump(plain))
    out = tmp_path / "out"
    assert run("compare", "--config", given, "--output", out) == 0
    trials = {row: [json.loads((out / "sst2" / row / f"trial-{n}" / "metrics.json").read_text()) for n in (1, 2)]
              for row in ("ticket", "dense-same-flops")}  # fmt: skip
    for row, found in trials.items():
        assert all(metrics["train_rows"] + metrics["validation_rows"] == 96 for metrics in found)  # of 96 in train
        scores = [metrics["score"]["accuracy"] for metrics in found]
        config = yaml.safe_load((out / "sst2" / row / "seed-1" / "config.yaml").read_text())
        assert config["lr"] == lists["lr"][int(np.argmax(scores))]
        assert config["tuning"] is False
    assert trials["dense-same-flops"][0]["flops"] == pytest.approx(trials["ticket"][0]["flops"], rel=0.1)
    assert "ticket 2" in (out / "compare.md").read_text()
    assert "dense 0" in (out / "compare.md").read_text()
    assert read(out)["tuned"]["ticket"]["sst2"] == {
        "lr": yaml.safe_load((out / "sst2" / "ticket" / "seed-1" / "config.yaml").read_text())["lr"]
    }
    started = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")}
    assert run("compare", "--config", given, "--output", out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")} == started


def test_a_row_whose_trials_all_failed_is_named_by_its_folder(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = yaml.safe_load(given.read_text()) | {"methods": {"dense": {"tune": {"dense_lr": [1e-3]}}}}
    settings["tasks"] = {"My Films": {"train_file": "films.csv"}}
    failed = grid.Outcome(None, "it failed")
    monkeypatch.setattr(tuning, "run_grid", lambda cells, *_, **__: {cell.name: failed for cell in cells})
    with pytest.raises(Refused, match=f"all trials of dense failed; see {tmp_path / 'my-films' / 'dense'}"):
        tuning.tuned(Comparison.of(settings), tmp_path)
