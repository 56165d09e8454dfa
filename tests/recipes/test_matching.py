"""Hidden-state matching in a whole run: paid for, resumable to the bit, and only where there is a searched model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from earlybert.recipes.finetuning.bench import Bench
from earlybert.recipes.run import Run
from earlybert.train.steplog import read_steps

from .conftest import Killed, dying_at, equal, run, steps

SHORT = ["--dense-epochs", "1", "--epochs", "1.5", "--search-steps", "6", "--match", "2", "--match-share", "0.4"]


def flops(folder: Path) -> dict[str, int]:
    stages = json.loads((folder / "metrics.json").read_text())["stages"]
    return {name: stage["flops"] for name, stage in stages.items()}


@pytest.mark.parametrize("weights", ["keep", "reset"])
def test_matching_costs_a_forward_pass_of_the_teacher(weights: str, flags: list[str], tmp_path: Path) -> None:
    words = [*flags, *SHORT, "--weights", weights, "--log-every", "1", "--output"]
    assert run("finetune", *words, tmp_path / "with") == 0
    assert run("finetune", *words, tmp_path / "without", "--match", "0") == 0
    one, other = (
        {line["step"]: line for line in read_steps(tmp_path / name / "steps.jsonl") if line["stage"] == "train"}
        for name in ("with", "without")
    )
    assert set(one) == set(other)
    matched = [step for step in one if one[step]["flops"] > other[step]["flops"]]
    taken = sorted(one)
    assert matched == taken[: round(0.4 * len(taken))]  # the first share, and no others
    assert all(one[step]["flops"] == other[step]["flops"] for step in taken if step not in matched)
    dense = next(line for line in read_steps(tmp_path / "with" / "steps.jsonl") if line["stage"] == "search")
    extra = sum(one[step]["flops"] - other[step]["flops"] for step in matched)
    tokens = sum(one[step]["tokens"] for step in matched)
    # a forward pass is a third of a dense step; batches differ in their padding
    assert extra / tokens == pytest.approx(dense["flops"] / dense["tokens"] / 3, rel=0.25)
    assert flops(tmp_path / "with")["train"] - flops(tmp_path / "without")["train"] == extra
    assert not equal(tmp_path / "with", tmp_path / "without")
    assert not (tmp_path / "with" / "searched.safetensors").exists()


def test_matched_steps_are_a_part_of_their_stage(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags, *SHORT, "--weights", "reset", "--log", "json", "--log-every", "1"]
    assert run("finetune", *words, "--output", tmp_path / "run") == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    lines = [line for line in said if line.get("event") == "step" and line["stage"] == "train"]
    taken = [line["step"] for line in lines]
    assert taken == list(range(taken[0], taken[-1] + 1))
    assert {line["steps"] for line in lines} == {taken[-1]}


@pytest.mark.parametrize(("weights", "fatals"), [("keep", (11, 25)), ("reset", (9,))])
def test_killed_before_and_behind_the_matched_steps_resumes_bit_equal(
    weights: str, fatals: tuple[int, ...], flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*flags, *SHORT, "--weights", weights, "--checkpoint-every", "3"]
    assert run("finetune", *words, "--output", tmp_path / "whole") == 0
    for fatal in fatals:
        revive = dying_at(monkeypatch, fatal)
        with pytest.raises(Killed):
            run("finetune", *words, "--output", tmp_path / f"killed-{fatal}")
        revive()
        assert run("finetune", "--output", tmp_path / f"killed-{fatal}", "--resume") == 0
        assert equal(tmp_path / "whole", tmp_path / f"killed-{fatal}")
        assert steps(tmp_path / "whole") == steps(tmp_path / f"killed-{fatal}")
        assert flops(tmp_path / "whole") == flops(tmp_path / f"killed-{fatal}")


def test_the_rival_does_not_match(flags: list[str], tmp_path: Path) -> None:
    assert run("finetune", *flags, *SHORT, "--weights", "keep", "--compare", "--output", tmp_path / "run") == 0
    for name in ("dense", "dense_same_flops"):
        assert Run.open(tmp_path / "run" / name).config.match == 0
        assert Bench.set_up(Run.open(tmp_path / "run" / name).config).config.weights == "reset"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "random", "--match", "1"], "no searched model to match"),
        (["--match", "-1"], "match must be at least 0"),
        (["--match-share", "2"], "match_share must be between 0 and 1"),
    ],
)
def test_refused(words: list[str], said: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("finetune", *flags, *words) == 2
    assert said in capsys.readouterr().err
