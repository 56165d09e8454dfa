"""What a comparison says of a row, from run folders made up so that the answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from earlybert.recipes.comparison.comparison import Comparison, cell_name
from earlybert.recipes.comparison.verdict import judge
from earlybert.recipes.grid import Outcome
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
