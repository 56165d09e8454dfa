"""Advice: arithmetic against hand-worked cases, and the command on tiny files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from earlybert.config.finetune import Finetune
from earlybert.cost import count
from earlybert.recipes.advise import Estimate, _advice, duration, estimated
from earlybert.recipes.finetuning.bench import Bench
from earlybert.recipes.finetuning.beside import Beside
from earlybert.recipes.finetuning.plan import plan

from .conftest import run


def estimate(
    ticket_step: float = 0.7, search_steps: int = 20, ticket_steps: int = 200, beside: Sequence[Beside] = ()
) -> Estimate:
    return Estimate(
        dense_steps=300,
        search_steps=search_steps,
        ticket_steps=ticket_steps,
        dense_step=1.0,
        search_step=1.1,
        ticket_step=ticket_step,
        flops_ratio=0.6,
        dense_flops=50.0,
        beside=beside,
    )


def test_the_arithmetic_by_hand() -> None:
    found = estimate()
    assert found.dense_time == 300
    assert found.ticket_time == pytest.approx(20 * 1.1 + 200 * 0.7)  # 162
    assert found.saved == pytest.approx(0.46)
    assert found.pays_after == 74  # 22 s of search / 0.3 s a step
    assert found.rival_steps == 162
    assert found.flops == pytest.approx((20 + 120) / 300)


def test_what_is_done_beside_the_steps_counts() -> None:
    found = estimate(
        beside=[Beside("scoring", seconds=5.0, flops=400.0), Beside("refitting", seconds=3.0, flops=100.0)]
    )
    assert found.ticket_time == pytest.approx(162 + 8)
    assert found.rival_steps == 170
    assert found.pays_after == 100  # 22 + 8 s / 0.3 s a step
    assert found.flops == pytest.approx((20 + 120 + 500 / 50) / 300)


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        (estimate(), "a ticket can pay"),
        (estimate(ticket_step=0.99), "train dense for fewer epochs (--method dense --dense-epochs 1.50): a ticket's step is no faster"),
        (estimate(ticket_step=1.2), "no faster here"),
        (estimate(search_steps=200, ticket_steps=200), "train dense (--method dense): search and ticket take as long"),
        (estimate(search_steps=100, ticket_steps=150), "earns its search only after 367 steps, and the ticket trains 150"),
    ],
)  # fmt: skip
def test_when_the_better_advice_is_fewer_epochs(found: Estimate, advice: str) -> None:
    assert advice in _advice(found, 1.5)


def test_durations_in_the_unit_of_a_person() -> None:
    assert [duration(seconds) for seconds in (7, 119.6, 600, 7199, 9000)] == [
        "7 s",
        "120 s",
        "10 min",
        "120 min",
        "2.5 h",
    ]


def test_the_command_prints_a_table_and_advice_and_writes_nothing(
    model_folder: Path,
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [model_folder, "sst2", "--data-dir", data_dir, "--max-length", "16", "--batch-size", "4", "--align", "8"]
    assert run("advise", *words, "--heads", "1", "--device", "cpu", "--seconds", "0.1") == 0
    said = capsys.readouterr().out
    for expected in ("dense, same time", "training time", "A ticket's step takes", "Advice: ", "of its FLOPs"):
        assert expected in said
    assert "scoring" not in said
    more = ["--recipe", "best", "--device", "cpu", "--seconds", "0.1"]
    assert run("advise", *words, *more) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (r"scoring \d+ batches", r"refitting on 8 batches", r"matching in \d+ steps"):
        assert re.search(rf"[+-]\d+\.\d% for {part}", said), (part, said)
    assert "refit: " not in said
    assert "were not timed" not in said
    assert run("advise", *words, *more, "--cuts", "2") == 0
    assert "The run has several cuts, whose steps were not timed" in " ".join(capsys.readouterr().out.split())
    assert run("advise", *words, "--heads", "1", "--search-steps", "500", "--device", "cpu", "--seconds", "0.1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"The ticket would take \d+% more than the dense training time", said), said
    assert "same saving" not in said
    assert "Advice: train dense (--method dense):" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("weights", "trained"), [("reset", 48), ("keep", 48 - 10)])  # of 24 an epoch
def test_steps_of_a_search_whose_weights_are_kept_are_among_those_of_the_training(
    weights: Literal["reset", "keep"], trained: int, config: Finetune
) -> None:
    bench = Bench.set_up(replace(config, epochs=2, search_steps=10, weights=weights))
    times = {"dense": [1.0], "search": [1.5], "ticket": [0.5]}
    cost = count(bench.theta_0())
    found = estimated(bench, plan(bench), times, cost, cost, ())
    assert (found.search_steps, found.ticket_steps) == (10, trained)
    assert found.ticket_time == 10 * 1.5 + trained * 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["minilm", "ssst2"], "unknown task 'ssst2'"),
        (["minilm", "nowhere.csv"], "nowhere.csv cannot be read"),
        (["minilm"], "no data"),
        (["minilm", "sst2", "--lr", "-1"], "lr must be above 0"),
    ],
)
def test_bad_input(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("advise", *words) == 2
    assert said in capsys.readouterr().err
