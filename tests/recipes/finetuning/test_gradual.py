"""Cutting in several steps: the schedule, the size at the end, the cost, and going on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import earlybert as eb
from earlybert.anatomy import of
from earlybert.config.finetune import Finetune
from earlybert.recipes.drawing import after_cut, stand_in
from earlybert.recipes.finetuning import gradual
from earlybert.recipes.finetuning.plan import later_cuts
from earlybert.train.steplog import read_steps

from ...conftest import tiny_model
from ..conftest import Killed, dying_at, equal, run

GRADUAL = ["--weights", "keep", "--search-steps", "6", "--epochs", "2", "--method", "fisher_searched", "--cuts", "3"]
BUDGET = ["--heads", "2", "--neurons", "0.5", "--score-batches", "2"]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def costs(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((line["stage"], line["step"], line["flops"]) for line in read_steps(folder / "steps.jsonl"))


def test_the_shares_are_equal_and_the_last_is_the_whole() -> None:
    whole = Finetune(method="fisher_searched", weights="keep", heads=4, neurons=0.3, cuts=3)
    assert [after_cut(whole, number).heads for number in (1, 2, 3)] == [1, 3, 4]
    assert [after_cut(whole, number).neurons for number in (1, 2, 3)] == pytest.approx([0.1, 0.2, 0.3])
    assert after_cut(whole, 3) == whole
    assert later_cuts(20, 120, 3) == [35, 50]
    assert later_cuts(20, 120, 1) == []


@pytest.mark.parametrize("budget", [{"heads": 2, "neurons": 0.5}, {"joint": 0.5}])
def test_stand_ins_lie_within_each_other_and_end_at_the_budget(budget: dict[str, Any]) -> None:
    config = Finetune(method="fisher_searched", weights="keep", cuts=2, align=8, **budget)
    anatomy = of(tiny_model())
    first = stand_in(after_cut(config, 1), anatomy)
    last, once = stand_in(config, anatomy, within=first), stand_in(config, anatomy)
    assert all(set(a) <= set(b) for a, b in zip(last.heads + last.neurons, first.heads + first.neurons, strict=True))
    assert first.neurons_kept > last.neurons_kept == once.neurons_kept
    assert last.heads_kept == once.heads_kept


@pytest.mark.parametrize("more", [["--refit", "2"], ["--match", "1", "--match-share", "0.5", "--engine", "fast"]])
def test_three_cuts_end_at_the_size_of_one_and_resume_bit_equal(
    more: list[str],
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = [*flags, *GRADUAL, *BUDGET, *more]
    assert run("finetune", *settings, "--output", tmp_path / "whole") == 0
    found = metrics(tmp_path / "whole")
    model, ticket = eb.load(tmp_path / "whole" / "model"), eb.Ticket.load(tmp_path / "whole" / "ticket.json")
    assert eb.ticket_of(model) == ticket
    assert {len(kept) for kept in ticket.heads} == {2}
    assert ticket.neurons_kept == ticket.num_neurons * ticket.layers // 2
    steps = found["stages"]["train"]["steps"] + found["stages"]["search"]["steps"]
    assert found["cut_after"] == [6, *later_cuts(6, steps, 3)]
    # The scoring of every cut is counted, each of a smaller model than the one before.
    scoring = [flops for stage, _, flops in costs(tmp_path / "whole") if stage == "scoring"]
    assert len(scoring) == 3
    assert all(flops > 0 for flops in scoring)
    text = capsys.readouterr().out
    assert "cut 2 of 3 after" in text
    assert "cut 3 of 3 after" in text

    # Once in training between the cuts, once between a checkpoint of a cut and what is written behind it.
    revive = dying_at(monkeypatch, found["cut_after"][1] + 3)
    with pytest.raises(Killed):
        run("finetune", *settings, "--output", tmp_path / "killed")
    revive()
    real = gradual.checkpoint.save

    def mortal(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        if kwargs["state"].get("cuts") == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(gradual.checkpoint, "save", mortal)
        with pytest.raises(Killed):
            run("finetune", "--output", tmp_path / "killed", "--resume")
    assert eb.Ticket.load(tmp_path / "killed" / "ticket.json") != ticket
    assert run("finetune", "--output", tmp_path / "killed", "--resume") == 0
    assert eb.Ticket.load(tmp_path / "killed" / "ticket.json") == ticket
    assert equal(tmp_path / "whole", tmp_path / "killed")
    assert costs(tmp_path / "whole") == costs(tmp_path / "killed")


def test_moments_go_through_every_cut(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = gradual.rebind

    def watched(optimizer: torch.optim.Optimizer, old: Any, new: Any) -> Any:
        after = real(optimizer, old, new)
        parameters = [p for group in after.param_groups for p in group["params"]]
        assert set(parameters) == set(new.parameters())
        assert all(after.state[p]["exp_avg"].shape == p.shape for p in parameters if p in after.state)
        seen.append(len(after.state))
        return after

    monkeypatch.setattr(gradual, "rebind", watched)
    assert run("finetune", *flags, *GRADUAL, *BUDGET, "--output", tmp_path / "run") == 0
    assert len(seen) == 2
    assert min(seen) > 20


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--weights", "reset"], "use weights: keep"),
        (["--method", "ticket"], "scores that can be taken again"),
        (["--cuts", "0"], "cuts must be at least 1"),
        (["--cuts", "30"], "too few for 30 cuts"),
    ],
)
def test_cuts_that_make_no_sense_are_refused_before_compute(
    changes: list[str], sentence: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("finetune", *flags, *GRADUAL, *BUDGET, *changes, "--output", tmp_path / "run") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_ticket_of_several_cuts_has_its_rivals(flags: list[str], tmp_path: Path) -> None:
    """They begin with its settings, and cut nothing."""
    out = tmp_path / "run"
    assert run("finetune", *flags, *GRADUAL, *BUDGET, "--compare", "--output", out) == 0
    ticket = metrics(out)
    rival = next(
        found
        for file in out.rglob("metrics.json")
        if (found := json.loads(file.read_text()))["method"] == "dense_same_flops"
    )
    assert 0.9 < rival["flops"] / ticket["flops"] <= 1
    assert rival["parameters"]["after"] == ticket["parameters"]["before"]
