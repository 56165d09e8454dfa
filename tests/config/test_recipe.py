"""Recipes: what they set, what wins over them, and that a run says what it was made with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from earlybert.config.checks import BadSetting
from earlybert.config.finetune import Finetune
from earlybert.config.recipe import RECIPES, with_recipe
from earlybert.recipes.comparison.comparison import Comparison
from earlybert.recipes.run import Run
from earlybert.ticket import Ticket

from ..recipes.conftest import run, tiny_flags

BEST = RECIPES["best"]


def compared(**changes: Any) -> Comparison:
    rows = {
        "dense": None,
        "dense_same_flops": {"like": "best"},
        "best": {"recipe": "best"},
        "no refit": {"recipe": "best", "refit": 0},
        "coefficients": {"method": "ticket", "recipe": "best"},
        "paper": {"method": "ticket", "recipe": "paper"},
        "random": None,
    }
    return Comparison.of({"tasks": ["sst2"], "methods": rows, "seeds": [1], "epochs": 2, "lr": 1e-4, **changes})


def unbudgeted(model_folder: Path, data_dir: Path) -> list[str]:
    """Settings of a tiny run that do not say how many heads go."""
    flags = tiny_flags(model_folder, data_dir)
    at = flags.index("--heads")
    return flags[:at] + flags[at + 2 :]


def test_every_recipe_is_one_that_a_run_takes() -> None:
    for name in RECIPES:
        assert Finetune(**with_recipe({"recipe": name})).recipe == name


def test_what_is_said_wins_over_the_recipe() -> None:
    config = Finetune(**with_recipe({"recipe": "best", "epochs": 2.5, "refit": 0}))
    assert (config.epochs, config.refit) == (2.5, 0)
    assert config.weights == BEST["weights"] == "keep"


def test_a_method_that_searches_nothing_gets_none_of_it() -> None:
    for method in ("dense", "random", "layerdrop", "dense_same_flops"):
        assert with_recipe({"recipe": "best", "method": method}) == {"recipe": "best", "method": method}


@pytest.mark.parametrize("method", ["ticket", "surgeon_searched"])
def test_one_ranking_is_only_for_scores_in_one_unit(method: str) -> None:
    assert Finetune(**with_recipe({"recipe": "best", "method": method})).joint is None
    for scored in (method, "random", "magnitude", "dense", "surgeon", "mlm_search"):
        with pytest.raises(BadSetting, match=f"method {scored} scores them in no common unit"):
            Finetune(method=scored, joint=0.3)
    for scored in ("taylor", "fisher", "taylor_searched", "fisher_searched"):
        assert Finetune(**with_recipe({"recipe": "best", "method": scored, "joint": 0.3})).joint == 0.3


@pytest.mark.parametrize("said", [{"heads": 6}, {"neurons": 0.2}, {"joint": None}])
def test_what_goes_by_kind_takes_the_place_of_the_recipe_s_ranking(said: dict[str, Any]) -> None:
    assert Finetune(**with_recipe({"recipe": "best", **said})).joint is None
    row = {"tasks": ["sst2"], "methods": {"best": {"recipe": "best", **said}}, "seeds": [1]}
    assert Comparison.of(row).settings_of("sst2", "best", 1).get("joint") is None


def test_a_trial_s_heads_are_tried() -> None:
    row = {"recipe": "best", "tune": {"heads": [4, 6]}}
    comparison = Comparison.of({"tasks": ["sst2"], "methods": {"best": row}, "seeds": [1], "neurons": 0.3})
    assert comparison.settings_of("sst2", "best", 1)["joint"] == BEST["joint"]
    for trial in comparison.trials("best"):
        settings = comparison.settings_of("sst2", "best", 1, trial)
        assert (settings["heads"], settings.get("joint")) == (trial["heads"], None)
    tuned = replace(comparison, chosen={"best": {"sst2": {"heads": 6}}}).settings_of("sst2", "best", 1)
    assert (tuned["heads"], tuned.get("joint")) == (6, None)


def test_a_ranking_is_unset_from_the_command_line(
    model_folder: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*unbudgeted(model_folder, data_dir), "--output", str(tmp_path / "run")]
    short = ["--dense-epochs", "1", "--score-batches", "2", "--refit", "0", "--match", "0"]
    assert run("finetune", *flags, *short, "--recipe", "best", "--joint", "null", "--weights", "reset") == 0
    assert Run.open(tmp_path / "run").config.joint is None
    assert run("draw", tmp_path / "run", "--joint", "0.3", "--into", tmp_path / "joint") == 0
    for number, (words, heads) in enumerate([(["--heads", "2"], [2] * 3), (["--joint", "null"], [3] * 3)]):
        into = tmp_path / str(number)
        assert run("draw", tmp_path / "joint", *words, "--into", into) == 0
        assert [len(kept) for kept in Ticket.load(into / "ticket.json").heads] == heads
    assert run("draw", tmp_path / "joint", "--heads", "2", "--joint", "0.3", "--into", tmp_path / "no") == 2
    assert "give it or heads, not both" in capsys.readouterr().err


def test_rows_of_a_comparison() -> None:
    comparison = compared()
    assert comparison.method_of("best") == BEST["method"]
    best, other, coefficients, paper, random, dense, rival = (
        comparison.settings_of("sst2", row, 1)
        for row in ("best", "no refit", "coefficients", "paper", "random", "dense", "dense_same_flops")
    )
    # a row's recipe goes before what is said for all rows; the row's own settings before both
    assert {name: best[name] for name in BEST} == BEST
    assert {name for name in best if best[name] != other[name]} == {"refit"}
    assert (coefficients["method"], coefficients.get("joint"), coefficients["weights"]) == ("ticket", None, "keep")
    for plain in (paper, random):
        assert plain["epochs"] == 2
        assert "weights" not in plain
    assert not {"weights", "joint", "refit", "match"} & {*dense, *rival}
    assert rival["lr"] == 1e-4


def test_a_recipe_for_all_rows_goes_behind_what_is_said_for_all_rows() -> None:
    comparison = Comparison.of(
        {"tasks": ["sst2"], "methods": {"a": {"method": "ticket"}}, "seeds": [1], "recipe": "best", "epochs": 2}
    )
    settings = comparison.settings_of("sst2", "a", 1)
    assert (settings["epochs"], settings["weights"], settings["method"]) == (2, "keep", "ticket")


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(BadSetting, match="unknown recipe 'bst'; did you mean best"):
        compared(recipe="bst")


def test_a_run_says_what_the_recipe_set(model_folder: Path, data_dir: Path, tmp_path: Path) -> None:
    flags = [*unbudgeted(model_folder, data_dir), "--dense-epochs", "1", "--output", str(tmp_path / "run")]
    assert run("finetune", *flags, "--recipe", "best", "--refit", "2", "--score-batches", "2") == 0
    config = Run.open(tmp_path / "run").config
    expected = {**BEST, "refit": 2, "score_batches": 2}
    assert {name: getattr(config, name) for name in expected} == expected
    assert run("finetune", "--output", str(tmp_path / "run"), "--resume", "--recipe", "best", "--epochs", "9") == 2


def test_a_search_alone_is_of_coefficients(
    model_folder: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*tiny_flags(model_folder, data_dir), "--method", "fisher_searched", "--output", str(tmp_path / "run")]
    assert run("search", *flags) == 2
    assert "method fisher_searched scores otherwise" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
