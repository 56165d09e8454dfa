"""Each check answers held, not held and open where it should, on runs made up so that the answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from earlybert import Gates, Ticket
from earlybert.recipes.reproduce.claims import CHECKS, Runs
from earlybert.tasks import Predictions
from earlybert.ticket import HistoryWriter
from tests.conftest import HEADS, NEURONS, tiny_model

ROWS = 400
RIGHT = {"best": 380, "good": 300, "same": 300, "bad": 200}
"""Of 400 rows each, so the difference of good and bad is far outside of chance, that of good and same is none."""


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    labels = np.random.default_rng(0).integers(2, size=ROWS)
    for row, right in RIGHT.items():
        folder = tmp_path / row
        folder.mkdir()
        order = np.random.default_rng(sum(map(ord, row))).permutation(ROWS)
        values = np.where(order < right, labels, 1 - labels)
        Predictions(values, labels, ("accuracy",), 2).save(folder / "predictions.safetensors")
        (folder / "metrics.json").write_text("{}")
    flops = {"best": 1.0, "good": 0.57, "same": 6.1, "bad": None}
    return Runs(("sst2",), (1,), lambda task, row, seed: tmp_path / row, flops, dict(flops))


@pytest.mark.parametrize(
    ("check", "given", "answer"),
    [
        ("above", {"rows": ["good", "bad"]}, "held"),
        ("above", {"rows": ["bad", "good"]}, "not held"),
        ("above", {"rows": ["good", "same"]}, "open"),
        ("within", {"rows": ["good", "bad"], "points": 1.0}, "held"),
        ("within", {"rows": ["bad", "good"], "points": 1.0}, "not held"),
        ("within", {"rows": ["good", "same"], "points": 0.1}, "open"),
        ("alike", {"rows": ["good", "same"], "points": 30.0}, "held"),
        ("alike", {"rows": ["best", "good", "bad"], "points": 1.0}, "not held"),
        ("alike", {"rows": ["good", "same"], "points": 0.1}, "open"),
        ("best", {"rows": ["best", "good", "bad"]}, "held"),
        ("best", {"rows": ["good", "same", "best"]}, "not held"),
        ("best", {"rows": ["good", "same", "bad"]}, "open"),
        ("falls", {"rows": ["best", "good", "bad"]}, "held"),
        ("falls", {"rows": ["bad", "good", "best"]}, "not held"),
        ("saves", {"row": "good", "low": 40, "high": 45}, "held"),
        ("saves", {"row": "best", "low": 40, "high": 45}, "not held"),
        ("saves", {"row": "bad", "low": 40, "high": 45}, "open"),
        ("saves_time", {"row": "good", "low": 40, "high": 45}, "held"),
        ("saves_time", {"row": "best", "low": 40, "high": 45}, "not held"),
        ("costs", {"row": "same", "flops": 6.0}, "held"),
        ("costs", {"row": "good", "flops": 6.0}, "not held"),
        ("above", {"rows": ["good", "never run"]}, "open"),
        ("settles", {"row": "never run", "kind": "heads"}, "open"),
    ],
)
def test_answers(runs: Runs, check: str, given: dict[str, Any], answer: str) -> None:
    found = CHECKS[check](runs, **given)
    assert found.answer == answer, found.evidence
    assert found.evidence


def test_the_papers_search_is_more_than_it_says(runs: Runs) -> None:
    """400 of 8,601 steps at length 128, where a tenth of the others is at 512 and half the rows."""
    found = CHECKS["search_of_the_papers_run"](runs, percent=3)
    assert found.answer == "not held"
    assert found.evidence == "400 of 8,601 steps are 4.7 %, and 4.2 % of the FLOPs"
    assert CHECKS["search_of_the_papers_run"](runs, percent=5).answer == "held"


def test_times_of_a_shared_machine_tell_nothing(runs: Runs) -> None:
    assert CHECKS["saves_time"](replace(runs, rough=True), row="good", low=40, high=45).answer == "open"


def test_a_mean_over_tasks_needs_all_of_them(runs: Runs, tmp_path: Path) -> None:
    two = Runs(("sst2", "rte"), (1,), lambda task, row, seed: tmp_path / (row if task == "sst2" else "none"), {}, {})
    assert two.apart("good", "bad") is None
    both = Runs(("sst2", "rte"), (1,), runs.where, {}, {})
    mean, low, high = both.apart("good", "bad") or (0, 0, 0)
    one = runs.apart("good", "bad") or (0, 0, 0)
    assert mean == pytest.approx(one[0]) == pytest.approx(25.0)
    assert (high - low) == pytest.approx((one[2] - one[1]) / 2**0.5)  # two tasks that do not depend on each other


def _search(folder: Path, *, settles_at: int, away: range = range(0), steps: int = 50) -> None:
    """Coefficients that are drawn anew until a step, and then stay; in `away` they are others for a while."""
    gates = Gates(tiny_model())
    writer = HistoryWriter(folder / "history.bin", gates)
    for step in range(1, steps + 1):
        torch.manual_seed(step if step <= settles_at or step in away else 0)
        for parameter in gates.parameters():
            parameter.data = torch.rand_like(parameter)
        writer.record()
    writer.close()
    settings = {"heads": 2, "heads_scope": "layer", "neurons": 0.5, "neurons_scope": "global"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize(("step", "answer"), [(9, "held"), (40, "not held")])
@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_a_mask_settles_early_or_late(runs: Runs, tmp_path: Path, kind: str, step: int, answer: str) -> None:
    _search(tmp_path / "good", settles_at=step)
    found = CHECKS["settles"](runs, row="good", kind=kind)
    assert found.answer == answer, found.evidence
    assert "chance is 0.500" in found.evidence


def test_a_mask_that_leaves_and_comes_back_has_not_settled_early(runs: Runs, tmp_path: Path) -> None:
    _search(tmp_path / "good", settles_at=9, away=range(20, 30))
    found = CHECKS["settles"](runs, row="good", kind="neurons")
    assert found.answer == "not held"
    assert "after 10 of 50 steps the neurons differ from the last mask by 0.000" in found.evidence


def _wandering(folder: Path, *, still: range, steps: int = 100) -> None:
    """Neurons that are drawn anew at every step but those in `still`."""
    gates = Gates(tiny_model())
    torch.manual_seed(0)
    writer = HistoryWriter(folder / "history.bin", gates)
    for step in range(1, steps + 1):
        if step not in still:
            gates.neurons.data = torch.rand_like(gates.neurons)
        writer.record()
    writer.close()
    settings = {"heads": 2, "heads_scope": "layer", "neurons": 0.5, "neurons_scope": "global"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize(("still", "answer"), [(range(40, 71), "held"), (range(20, 101), "not held")])
def test_a_mask_that_moves_again_later(runs: Runs, tmp_path: Path, still: range, answer: str) -> None:
    _wandering(tmp_path / "good", still=still)
    found = CHECKS["rises_later"](runs, row="good", kind="neurons")
    assert found.answer == answer, found.evidence


@pytest.mark.parametrize(("widths", "later"), [((60, 40, 20), "held"), ((20, 40, 60), "not held"), ((9, 9, 9), "open")])
def test_which_end_loses_more(runs: Runs, tmp_path: Path, widths: tuple[int, ...], later: str) -> None:
    neurons = tuple(tuple(range(width)) for width in widths)
    Ticket(tuple((0,) for _ in widths), neurons, "bert", HEADS, NEURONS).save(tmp_path / "good" / "ticket.json")
    assert CHECKS["later_lose_more"](runs, row="good").answer == later
    opposite = {"held": "not held", "not held": "held", "open": "open"}[later]
    assert CHECKS["earlier_lose_more"](runs, row="good").answer == opposite
