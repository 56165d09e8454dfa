"""What a comparison says of a row, from runs made up so that the answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earlybert.recipes.comparison.comparison import Comparison, cell_name
from earlybert.recipes.comparison.sheets import sheets
from earlybert.recipes.comparison.verdict import Verdict, _rival, judge
from earlybert.recipes.grid import Outcome
from earlybert.recipes.statistics import difference, over_tasks
from earlybert.recipes.versus import saved
from earlybert.report.sheet import Sheet
from earlybert.tasks import Predictions

ROWS = 400
WRONG = {"sst2": {"dense": range(60), "ticket": range(60, 100)},
         "rte": {"dense": range(55), "ticket": range(55, 100)}}  # fmt: skip
"""Rows that only the one or the other gets wrong; of 100, 20 more in the first task and 10 more in the second."""


def test_p_values_are_corrected_over_the_tasks_each_kind_by_itself(tmp_path: Path) -> None:
    comparison = Comparison.of({"tasks": [*WRONG], "methods": ["dense", "ticket"], "seeds": [1]})
    outcomes = {}
    for task, row in ((task, row) for task in WRONG for row in comparison.methods):
        name = cell_name(task, row, 1)
        values = np.ones(ROWS, dtype=np.int64)
        values[[*WRONG[task][row]]] = 0
        (tmp_path / name).mkdir(parents=True)
        Predictions(values, np.ones_like(values), ("accuracy",), 2).save(tmp_path / name / "predictions.safetensors")
        outcomes[name] = Outcome(
            {
                "headline": "accuracy",
                "score": {"accuracy": float(values.mean())},
                "flops": 1.0,
                "seconds": 1.0,
                "stages": {"train": {"mean_step_seconds": 1.0, "steps": 1, "seconds": 1.0}},
                "parameters": {"after": 1},
                "engine": "EagerStep",
                "environment": {"precision": "no"},
            }
        )
    first, second = (judge(comparison, tmp_path, outcomes)["ticket"][task] for task in WRONG)
    assert first.rival == "dense"
    assert first.difference is not None
    assert second.difference is not None
    # 0.05 and 0.025, of a standard error of about 0.025 both
    assert first.difference.different == pytest.approx(0.0455, abs=0.01)
    assert second.difference.different == pytest.approx(0.317, abs=0.03)
    assert first.difference.inferior < first.difference.different / 2
    for what in ("inferior", "different"):  # of two, the smaller counts twice, and the larger is more than that
        assert getattr(first, what) == pytest.approx(2 * getattr(first.difference, what))
        assert getattr(second, what) == pytest.approx(getattr(second.difference, what))


def test_the_mean_over_tasks_is_judged_where_all_cost_the_same() -> None:
    plain = {"tasks": ["sst2", "rte"], "methods": ["dense", "dense_same_flops", "ticket"], "seeds": [1, 2]}
    comparison = Comparison.of(plain)
    random = np.random.default_rng(0)
    labels = np.ones(4000)
    ours, theirs = ((random.random(4000) < right).astype(float) for right in (0.9, 0.8))
    apart = difference([ours], [theirs], labels, "accuracy", margin=0.003)
    bare = Verdict({1: 0.9}, {}, 0.5, 0.5, None, 0.8)
    same = replace(bare, rival="dense_same_flops", rival_cost=1.0, difference=apart, to_full=apart, different=0.0)
    other = replace(same, rival_cost=1.5)

    def tables(first: Verdict, second: Verdict) -> list[Sheet]:
        verdicts = {"dense": {"sst2": bare, "rte": bare}, "ticket": {"sst2": first, "rte": second}}
        return sheets(comparison, verdicts, {})[-2:]

    def notes(first: Verdict, second: Verdict) -> str:
        return " ".join(tables(first, second)[0].notes)

    def cells(first: Verdict, second: Verdict) -> tuple[list[str], list[str]]:
        at_cost, to_full = tables(first, second)
        assert at_cost.columns[-1] == to_full.columns[-1] == "mean"
        return at_cost.rows[0], to_full.rows[0]

    at_cost, to_full = cells(same, same)
    wide = over_tasks([apart, apart], margin=0.003)
    text = f"{100 * wide.mean:+.2f} [{100 * wide.low:+.2f}, {100 * wide.high:+.2f}]"
    assert at_cost[-1] == f"{text} better"
    assert to_full[-1] == text
    assert cells(same, other)[0][-1] == f"{text} (other cost)"
    assert "{method: dense_same_flops, like: ticket}" in notes(same, other)
    assert "dense_same_flops, like" not in notes(same, same)
    missing = replace(same, difference=None, to_full=None)
    assert [row[-1] for row in cells(same, missing)] == ["-", "-"]


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
    beside = saved(metrics(8.0, 40, search=2.0), metrics(8.0, 40))  # beside a ticket that has searched
    assert beside["search"] == pytest.approx(0.2)
    assert sum(beside[part] for part in ("fewer_epochs", "engine", "smaller_network", "search")) == beside["time"]


def test_a_rival_made_for_a_row_goes_before_others_of_that_cost() -> None:
    plain = Verdict({}, {}, 0.5, 0.5, None, None, None)
    verdicts = {
        "ticket": {"sst2": plain},
        "dense": {"sst2": replace(plain, flops=0.5, scores={1: 0.9})},  # as near, and better
        "dense_same_flops": {"sst2": replace(plain, flops=0.49, scores={1: 0.8})},
    }
    comparison = Comparison.of({"tasks": ["sst2"], "methods": [*verdicts], "seeds": [1]})
    assert _rival(comparison, verdicts, "sst2", "ticket") == "dense_same_flops"
