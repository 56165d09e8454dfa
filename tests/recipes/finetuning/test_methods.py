"""Every method by its name, from the command line to its run folder."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import earlybert as eb
from earlybert.anatomy import of
from earlybert.baselines import imp
from earlybert.config.finetune import Finetune
from earlybert.config.methods import METHODS, RIVALS
from earlybert.recipes.drawing import stand_in
from earlybert.recipes.finetuning.bench import Bench
from earlybert.recipes.finetuning.methods import WAYS
from earlybert.recipes.finetuning.timing import contenders
from earlybert.recipes.places import same_places
from earlybert.recipes.run import Run
from earlybert.ticket import Ticket
from earlybert.train.steplog import totals

from ...conftest import tiny_model
from ..conftest import Killed, dying_at, equal, run, steps, weights

SHORT = ["--dense-epochs", "1", "--epochs", "1", "--search-steps", "6"]


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For runs that several tests only read."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def ticket(flags: list[str], shared: Path) -> Path:
    """A finished run."""
    if not (shared / "ticket").exists():
        assert run("finetune", *flags, *SHORT, "--output", shared / "ticket") == 0
    return shared / "ticket"


def test_every_method_has_a_way_and_every_way_a_method() -> None:
    assert set(WAYS) == set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(WAYS) - {"ticket", "mlm_search"}))
def test_a_run_of_every_method(method: str, ticket: Path, flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    like = ["--like", ticket] if METHODS[method].like else []
    assert run("finetune", *flags, *SHORT, "--method", method, *like, "--output", out) == 0
    found, reference = metrics(out), metrics(ticket)
    model = eb.load(out / "model")
    stages = found["stages"]
    assert found["method"] == method
    if METHODS[method].dense or method in RIVALS:
        assert "ticket" not in found
        assert not (out / "ticket.json").exists()
    else:
        kept = [len(heads) for heads in eb.Ticket.load(out / "ticket.json").heads]
        assert found["ticket"]["heads_kept"] == kept
        assert sum(found["ticket"]["neurons_kept"]) == sum(reference["ticket"]["neurons_kept"])  # the same budget
        assert found["parameters"]["after"] == reference["parameters"]["after"]
    if method in (
        "random_same_widths",
        "inverted",
        "uniform",
        "taylor_searched",
        "fisher_searched",
        "surgeon_searched",
    ):
        assert stages["search"]["steps"] == 6  # the search counts, whoever paid for it
        assert stages["search"]["flops"] == reference["stages"]["search"]["flops"]
    elif method != "imp":
        assert "search" not in stages
    if method in ("taylor", "fisher", "surgeon"):
        assert stages["scoring"]["flops"] > 0
    if method == "random_same_widths":
        assert found["ticket"]["neurons_kept"] == reference["ticket"]["neurons_kept"]
    if method == "uniform":
        widths = found["ticket"]["neurons_kept"]
        assert max(widths) - min(widths) <= 8  # one multiple of --align, to meet the budget in all
    if method.startswith("layerdrop"):
        assert model.config.num_hidden_layers == 2
    if method == "imp":
        assert stages["search"]["steps"] == (imp.ROUNDS - 1) * stages["train"]["steps"]
        matrices = [value for name, value in weights(out).items() if "layer" in name and value.dim() == 2]
        zeros = sum(int((value == 0).sum()) for value in matrices) / sum(value.numel() for value in matrices)
        assert zeros == pytest.approx(1 - imp.densities()[-1], abs=2e-3)
        assert found["imp"]["sparsity"] == pytest.approx(zeros, abs=1e-6)
        assert found["imp"]["dense_flops_if_zeros_were_free"] == pytest.approx(4.69, abs=0.005)


@pytest.mark.parametrize("method", ["layerdrop", "imp"])
def test_the_dense_model_is_stopped_at_the_cost_of_what_has_no_ticket(
    method: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, words = tmp_path / method, ["--like", tmp_path / method, "--output", tmp_path / "rival"]
    assert run("finetune", *flags, *SHORT, "--method", method, "--output", other) == 0
    assert run("finetune", *flags, *SHORT, "--method", "dense_same_flops", *words) == 0
    mine, its = metrics(tmp_path / "rival"), metrics(other)
    step = mine["flops"] / mine["stages"]["train"]["steps"]
    assert 0 <= its["flops"] - mine["flops"] < 1.1 * step
    words[1] = tmp_path / "rival"
    assert run("finetune", *flags, *SHORT, "--method", "dense_same_flops", *words[:3], tmp_path / "no") == 2
    assert "is a run of method dense_same_flops, not of a ticket" in capsys.readouterr().err
    words[1] = other
    for refused in ("dense_same_time", "uniform"):
        assert run("finetune", *flags, *SHORT, "--method", refused, *words[:3], tmp_path / "no") == 2
        assert f"is a run of method {method}, not of a ticket" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_layers_dropped_in_training_cost_what_is_left(flags: list[str], tmp_path: Path) -> None:
    long = ["--dense-epochs", "4"]
    assert run("finetune", *flags, *long, "--method", "layerdrop_trained", "--output", tmp_path / "drop") == 0
    assert run("finetune", *flags, *long, "--method", "dense", "--output", tmp_path / "dense") == 0
    share = metrics(tmp_path / "drop")["flops"] / metrics(tmp_path / "dense")["flops"]
    assert share == pytest.approx((2 + 1 / 27) / 3, abs=0.08)


def test_the_rival_in_time_is_given_the_time_of_matching(ticket: Path, flags: list[str], tmp_path: Path) -> None:
    """Steps that also run a teacher are timed as such; a search on masked words is not timed at all."""
    matched, masked = tmp_path / "matched", tmp_path / "masked"
    assert run("finetune", *flags, *SHORT, "--match", "1", "--match-share", "1", "--output", matched) == 0
    bench = Bench.set_up(replace(Run.open(matched).config, match=0.0))
    with contenders(bench, {"ticket": Ticket.load(ticket / "ticket.json")}, match=1.0) as steps:
        assert (steps["matched"].aim is None, steps["ticket"].aim is None) == (False, True)
        assert type(steps["matched"]) is type(steps["ticket"])
    assert run("finetune", *flags, "--method", "dense_same_time", "--like", matched, "--output", tmp_path / "one") == 0
    shutil.copytree(ticket, masked)
    config = (masked / "config.yaml").read_text()
    (masked / "config.yaml").write_text(config.replace("method: ticket", "method: mlm_search"))
    assert run("finetune", *flags, "--method", "dense_same_time", "--like", masked, "--output", tmp_path / "two") == 2


def test_a_joint_budget_does_not_look_at_how_many_heads_go(flags: list[str], tmp_path: Path) -> None:
    """Not even for the mask that is shown while it searches."""
    given = ["--recipe", "best", "--joint", "0.3", "--heads", "9", "--search-epochs", "0.5", "--epochs", "1"]
    assert run("finetune", *flags, "--dense-epochs", "1", *given, "--output", tmp_path / "joint") == 0


def test_the_rival_takes_what_the_ticket_took(ticket: Path, flags: list[str], tmp_path: Path) -> None:
    for method in RIVALS:
        out = tmp_path / method
        assert run("finetune", *flags, "--method", method, "--like", ticket, "--output", out) == 0
        assert (out / "config.yaml").read_text().count(f"dense_steps: {len(steps(out))}\n") == 1
    one = metrics(tmp_path / "dense_same_flops")["flops"] / len(steps(tmp_path / "dense_same_flops"))
    assert 0 <= metrics(ticket)["flops"] - metrics(tmp_path / "dense_same_flops")["flops"] < 1.6 * one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "fatal"),
    [
        *(("method imp", step) for step in (4, 30, 71)),  # of 6 trainings of 24 steps
        *(("method layerdrop_trained", step) for step in (4, 14)),  # of 24
        *(("method taylor_searched", step) for step in (4, 15, 30)),  # of 6 + 24
        *(("recipe best", step) for step in (4, 9, 20)),
    ],
)
def test_killed_and_resumed_is_bit_equal(
    which: str, fatal: int, flags: list[str], tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, name = which.split()
    given, whole = (*flags, *SHORT, f"--{kind}", name), shared / name
    if not whole.exists():
        assert run("finetune", *given, "--output", whole) == 0
    revive = dying_at(monkeypatch, fatal)
    with pytest.raises(Killed):
        run("finetune", *given, "--output", tmp_path / "killed")
    revive()
    assert run("finetune", "--output", tmp_path / "killed", "--resume") == 0
    assert equal(whole, tmp_path / "killed")
    assert steps(whole) == steps(tmp_path / "killed")


def test_keep_and_refit(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = ["--weights", "keep", "--epochs", "2", "--search-steps", "8", "--refit", "4", "--rewarm", "3"]
    assert run("finetune", *flags, *keep, "--output", tmp_path / "keep") == 0
    lines = [line for line in steps(tmp_path / "keep") if line[0] == "train"]
    assert lines[0][1] == 9  # the search is part of the steps
    from earlybert.train.steplog import read_steps

    rates = [line["lr"] for line in read_steps(tmp_path / "keep" / "steps.jsonl") if line["stage"] == "train"]
    total = lines[-1][1]
    assert rates[:4] == pytest.approx([2e-3 * (1 - (8 + k) / total) * min(1, (k + 1) / 4) for k in range(4)])
    assert metrics(tmp_path / "keep")["stages"]["draw"]["flops"] > 0  # the refit is paid for
    assert run("draw", tmp_path / "keep", "--into", tmp_path / "other") == 2
    assert "being finished, has them no more" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "randem"], "unknown method 'randem'; did you mean random"),
        (["--method", "inverted"], "needs the run folder that it is like in --like"),
        (["--method", "inverted", "--like", "nowhere"], "nowhere is not a run folder"),
        (["--method", "random", "--weights", "keep"], "no searched weights to keep"),
        (["--rewarm", "5"], "rewarm is for weights: keep"),
        (["--refit", "1"], "refit must be at least 2"),
    ],
)
def test_refused_before_anything_is_written(
    words: list[str], said: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("finetune", *flags, *words, "--output", tmp_path / "run") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_reference_of_another_seed_is_refused(
    ticket: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "dense_same_flops", "--like", ticket, "--seed", "7", "--output", tmp_path / "run"]
    assert run("finetune", *flags, *words) == 2
    assert "has seed 42 and this run 7" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["inverted", "uniform"])
def test_it_keeps_as_many_as_the_ticket_it_is_like(
    method: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "ticket", tmp_path / "run"
    assert run("finetune", *flags, *SHORT, "--heads", "2", "--neurons", "0.6", "--output", whole) == 0
    assert run("finetune", *flags, *SHORT, "--method", method, "--like", whole, "--output", out) == 0  # 1 head, 0.4
    ticket, other = (eb.Ticket.load(folder / "ticket.json") for folder in (whole, out))
    assert [len(kept) for kept in other.heads] == [len(kept) for kept in ticket.heads] == [2, 2, 2]
    assert other.neurons_kept == ticket.neurons_kept == 80
    assert run("draw", out, "--into", tmp_path / "again") == 2
    assert f"of method {method}, which makes its ticket out of another run's; draw from" in capsys.readouterr().err


def test_a_reference_on_other_data_is_refused(
    ticket: Path, flags: list[str], data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--method", "random_same_widths", "--like", ticket, "--output", tmp_path / "run"]
    shutil.copytree(data_dir, tmp_path / "copy")
    assert run("finetune", *flags, *words, "--data-dir", tmp_path / "copy") == 2
    assert "has data_dir" in capsys.readouterr().err
    assert run("finetune", *flags, *words, "--n-best", "5") == 2
    assert "has n_best 20 and this run 5" in capsys.readouterr().err
    other_words = data_dir / "sst2" / ".."
    assert run("finetune", *flags, *SHORT, *words, "--data-dir", other_words) == 0


def test_files_named_in_other_words_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Finetune(train_file="train.csv", validation_file=str(tmp_path / "val.csv"))
    found = same_places(config, {"train_file": str(tmp_path / "train.csv"), "validation_file": "./val.csv"})
    assert found == {"train_file": config.train_file, "validation_file": config.validation_file}
    assert same_places(config, {"train_file": "other.csv", "text": "text", "model": None}) == {}


@pytest.fixture
def masked_folder(model_folder: Path, tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """The tiny model with a head for masked-language modelling in its weights."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    torch.manual_seed(3)
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(model_folder))
    model.save_pretrained(tmp_path / "masked")
    tiny_tokenizer.save_pretrained(tmp_path / "masked")
    return tmp_path / "masked"


@pytest.mark.parametrize("engine", ["eager", "fast"])
def test_a_ticket_searched_on_masked_text(engine: str, flags: list[str], masked_folder: Path, tmp_path: Path) -> None:
    words = [*flags, "--model", masked_folder, "--engine", engine, *SHORT, "--output"]
    assert run("finetune", *words, tmp_path / "mlm", "--method", "mlm_search") == 0
    assert run("finetune", *words, tmp_path / "task", "--method", "ticket") == 0
    on_text, on_task = metrics(tmp_path / "mlm"), metrics(tmp_path / "task")
    assert on_text["stages"]["search"]["steps"] == 6
    assert on_text["stages"]["search"]["flops"] > on_task["stages"]["search"]["flops"]  # the vocabulary comes on top
    scores = [eb.Scores.load(tmp_path / name / "scores.safetensors") for name in ("mlm", "task")]
    assert scores[0].digest() != scores[1].digest()
    assert scores[0].info["theta_0"] == scores[1].info["theta_0"]  # reset to the same start of the task
    losses = [line[2] for line in steps(tmp_path / "mlm") if line[0] == "search"]
    assert 3 < losses[0] < 7  # about log of the vocabulary, not of the classes


def test_a_model_without_a_masked_language_head_is_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("finetune", *flags, *SHORT, "--method", "mlm_search", "--output", tmp_path / "run") == 2
    assert "no weights for masked-language modelling" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_heads_and_neurons_in_one_ranking(flags: list[str], tmp_path: Path) -> None:
    words = [*flags, *SHORT, "--method", "fisher", "--joint", "0.4", "--output", tmp_path / "joint"]
    assert run("finetune", *words) == 0
    found = metrics(tmp_path / "joint")["ticket"]
    price = 2 * 8  # two times the head size
    kept = sum(found["heads_kept"]) * price + sum(found["neurons_kept"])
    assert kept == pytest.approx(0.6 * (12 * price + 192), abs=price)
    assert run("draw", tmp_path / "joint", "--joint", "0.2", "--into", tmp_path / "wider") == 0
    assert eb.Ticket.load(tmp_path / "wider" / "ticket.json").neurons_kept >= sum(found["neurons_kept"])
    assert run("draw", tmp_path / "joint", "--joint", "1.2", "--into", tmp_path / "none") == 2


def test_another_ticket_is_drawn_from_what_the_first_was_drawn_from(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("finetune", *flags, *SHORT, "--method", "fisher_searched", "--joint", "0.4", "--output", out) == 0
    assert run("draw", out, "--joint", "0.4", "--into", tmp_path / "again") == 0
    first, again = (eb.Ticket.load(folder / "ticket.json") for folder in (out, tmp_path / "again"))
    assert again == first
    assert first.drawn["source"] == "fisher"
    scoring = metrics(out)["stages"]["scoring"]
    assert (
        totals(tmp_path / "again" / "steps.jsonl")["scoring"].flops == scoring["flops"] > 0
    )  # it is paid for here, too
    like = [*flags, *SHORT, "--method", "random_same_widths", "--like", out, "--output", tmp_path / "like"]
    assert run("finetune", *like) == 0
    stages = metrics(tmp_path / "like")["stages"]
    assert stages["scoring"] == scoring
    assert metrics(tmp_path / "like")["flops"] == sum(sums["flops"] for sums in stages.values())
    (out / "sensitivity.safetensors").unlink()  # stopped between search and scoring: no ticket of coefficients
    assert run("draw", out, "--into", tmp_path / "early") == 2
    assert "has not finished its scoring; run earlybert finetune" in capsys.readouterr().err


@pytest.mark.parametrize("budget", [{"joint": 0.4}, {"heads": 0.4, "neurons": 0.4}])
def test_a_stand_in_has_the_shape_of_its_budget(budget: dict[str, float]) -> None:
    anatomy = of(tiny_model("bert", num_hidden_layers=6, num_attention_heads=8, intermediate_size=256))
    ticket = stand_in(Finetune(method="fisher", align=8, seed=1, **budget), anatomy)  # type: ignore[arg-type]
    assert ticket.heads_kept / 48 == pytest.approx(0.6, abs=0.12)
    assert ticket.neurons_kept / (6 * 256) == pytest.approx(0.6, abs=0.12)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_that_search_are_those_that_have_a_search_stage(name: str) -> None:
    source = inspect.getsource(WAYS[name].prepare)
    at_searched = inspect.getclosurevars(WAYS[name].prepare).nonlocals.get("at_searched", True)
    assert METHODS[name].searches == ("search_stage" in source and at_searched)
