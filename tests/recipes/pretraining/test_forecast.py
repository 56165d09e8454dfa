"""What a run of pre-training is said to take: against arithmetic by hand, and against what runs then took."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from earlybert.anatomy import Refused
from earlybert.config.pretrain import Pretrain
from earlybert.config.values import typed
from earlybert.data.masking import most
from earlybert.recipes.pretraining.estimate import RATE, work
from earlybert.recipes.pretraining.forecast import forecast
from tests.recipes.conftest import run

from .conftest import config_of

CONFIGS = Path(__file__).parents[3] / "configs"
WORDS = 30_528


def read(name: str) -> Pretrain:
    return Pretrain(**typed(yaml.safe_load((CONFIGS / f"pretrain_{name}.yaml").read_text()), Pretrain))


def by_hand(config: Pretrain, steps: int, rows: int, length: int) -> int:
    """FLOPs of dense steps: two for each weight and vector forward, four backward; scores and sums of the attention."""
    layers, hidden, neurons = config.layers, config.hidden, config.intermediate
    token = layers * (2 * (4 * hidden**2 + 2 * hidden * neurons) + 4 * length * hidden)
    row = 2 * (hidden**2 + 2 * hidden)  # pooler and next sentence
    prediction = 2 * (hidden**2 + hidden * WORDS)
    return 3 * steps * rows * (length * token + row + most(length) * prediction)


@pytest.mark.parametrize(("name", "millions"), [("base", 110.1), ("large", 336.2)])
def test_the_papers_dense_runs_by_hand(name: str, millions: float) -> None:
    config = replace(read(name), method="dense")
    found = work(config, WORDS)
    expected = by_hand(config, 7741, 65_536, 128), by_hand(config, 860, 32_768, 512)
    assert tuple(part.flops for part in found.parts) == expected
    assert [part.tokens for part in found.parts] == [7741 * 65_536 * 128, 860 * 32_768 * 512]
    assert round(found.before / 1e6, 1) == round(found.after / 1e6, 1) == millions


@pytest.mark.parametrize("name", ["base", "large"])
def test_the_papers_ticket_without_any_text(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = read(name)
    sheet = forecast(config)
    assert [row[:2] for row in sheet.rows] == [
        *(["search", "400"], ["phase 1", "6,193"], ["phase 2", "688"]),
        ["together", "7,281"],
    ]
    search, *phases = work(config, WORDS).parts
    assert search.flops == by_hand(config, 400, 65_536, 128)
    dense = work(replace(config, method="dense"), WORDS).parts
    for own, whole in zip(phases, dense, strict=True):
        assert own.steps == pytest.approx(0.8 * whole.steps, abs=1)
        assert 0.6 < (own.flops / own.steps) / (whole.flops / whole.steps) < 0.8
    total = search.flops + sum(phase.flops for phase in phases)
    assert sheet.rows[-1][-1] == f"{total / RATE / 3600:,.0f}"
    file = CONFIGS / f"pretrain_{name}.yaml"
    assert run("pretrain", "--config", file, "--check", "--output", tmp_path / "run") == 0
    assert "7,281" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["dense", "ticket", "random"])
def test_with_a_corpus_it_says_what_the_run_then_takes(method: str, flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [
        "--method",
        method,
        "--pairs",
        "false",
        "--engine",
        "eager",
    ]  # the fast step leaves padding out, rows here are short
    assert run("pretrain", *flags, *words, "--output", out) == 0
    config = config_of(out)
    metrics = json.loads((out / "metrics.json").read_text())
    sheet = forecast(config)
    taken = sum(metrics["stages"][name]["steps"] for name in ("search", "train") if name in metrics["stages"])
    assert sheet.rows[-1][1] == str(taken)
    found = work(config, 200)
    assert found.flops == metrics["flops"]
    assert {"before": found.before, "after": found.after} == metrics["parameters"]
    assert any("28,846 tokens to train on" in note for note in sheet.notes)
    assert not any("by default" in note for note in sheet.notes)


def test_a_budget_of_time_has_no_steps() -> None:
    sheet = forecast(replace(read("base_budget"), second=0.25))
    assert [row[0] for row in sheet.rows] == ["search", "phase 1", "phase 2"]
    assert [row[1] for row in sheet.rows] == ["400", "75% of the time", "25% of the time"]
    assert any("10 minutes have gone" in note for note in sheet.notes)


def test_what_cannot_run_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    base = read("base")
    with pytest.raises(Refused, match="micro-batches of 63"):
        forecast(replace(base, rows=63))
    with pytest.raises(Refused, match="cannot remove 12 of 12 heads"):
        forecast(replace(base, heads=12))
    for words, sentence in (
        (["--length", "4"], "a row of 4 tokens is too short"),
        (["--corpus", "/nowhere"], "/nowhere holds no prepared corpus"),
        (["--resume"], "leave --resume out"),
        (["--positions", "40"], "longer than the model's 40 positions"),
    ):
        assert run("pretrain", *flags, *words, "--check") == 2
        assert sentence in capsys.readouterr().err
    assert run("pretrain", *flags, "--shard", "full", "--check") == 0  # of a job that is not this one
