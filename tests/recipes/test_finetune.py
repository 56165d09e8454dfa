"""Whole runs on tiny real files: the stages, resuming bit-equal, reset and keep."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import earlybert as eb
from earlybert.config.finetune import Finetune
from earlybert.recipes.finetuning.bench import Bench
from earlybert.recipes.finetuning.plan import plan
from earlybert.train.step import EagerStep
from earlybert.train.steplog import read_steps
from tests import warm

from .conftest import Killed, dying_at, equal, run, steps


@pytest.mark.usefixtures("pages")
def test_a_whole_run_learns_and_leaves_its_folder(flags: list[str], tmp_path: Path, data_dir: Path) -> None:
    out = tmp_path / "run"
    assert run("finetune", *flags, "--output", out, "--recipe", "paper", "--epochs", "6", "--eval-every", "50") == 0
    names = {file.name for file in out.iterdir()}
    expected = {
        "config.yaml",
        "scores.safetensors",
        "history.bin",
        "ticket.json",
        "steps.jsonl",
        "metrics.json",
        "model",
        "predictions.safetensors",
        "report.html",
    }
    assert names == {*expected, "evaluations.jsonl"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["score"]["accuracy"] > 0.8  # good and bad words tell the label
    assert metrics["stages"]["search"]["steps"] == round(0.2 * 24) == len(eb.History(out / "history.bin"))
    assert metrics["stages"]["train"]["steps"] == 6 * 24
    lines = list(read_steps(out / "steps.jsonl"))
    assert metrics["seconds"] == pytest.approx(sum(line["seconds"] for line in lines))
    assert metrics["flops"] == sum(line["flops"] for line in lines)
    assert all(line["seconds"] > 0 for line in lines)
    assert metrics["parameters"]["after"] < metrics["parameters"]["before"]
    model = eb.load(out / "model")
    assert eb.ticket_of(model) == eb.Ticket.load(out / "ticket.json")
    assert model.config.id2label == {0: "negative", 1: "positive"}
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(out / "model")("a good film", return_tensors="pt")
    assert model(**ids).logits.shape == (1, 2)
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert Finetune(**saved).heads == 1
    first_lr = next(line["lr"] for line in lines if line["stage"] == "train")
    assert first_lr == 2e-3
    assert lines[-1]["lr"] == pytest.approx(2e-3 / 144)


def test_stages_one_by_one_equal_the_run_in_one_go_and_one_search_serves_many(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*flags, "--recipe", "paper"]
    assert run("finetune", *settings, "--output", tmp_path / "whole") == 0
    assert run("search", *settings, "--output", tmp_path / "parts") == 0
    assert run("train", tmp_path / "parts") == 2  # no ticket yet
    assert run("draw", tmp_path / "parts") == 0
    assert run("draw", tmp_path / "parts", "--heads", "2", "--neurons", "0.5", "--into", tmp_path / "other") == 0
    assert run("train", tmp_path / "parts") == 0
    assert equal(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "short.yaml").write_text("epochs: 5\nlr: 1.0e-3\n")
    assert run("train", tmp_path / "other", "--config", tmp_path / "short.yaml", "--epochs", "1") == 0
    assert (Run_config(tmp_path / "other").epochs, Run_config(tmp_path / "other").lr) == (1.0, 1e-3)
    assert {len(kept) for kept in eb.Ticket.load(tmp_path / "other" / "ticket.json").heads} == {2}
    capsys.readouterr()
    assert run("evaluate", tmp_path / "parts") == 0
    score = json.loads((tmp_path / "parts" / "metrics.json").read_text())["score"]["accuracy"]
    assert f"accuracy {score:.4f}" in capsys.readouterr().out
    assert run("draw", tmp_path / "parts", "--heads", "2") == 2  # already trained
    assert run("train", tmp_path / "parts") == 2


def test_reset_starts_from_theta_0_to_the_bit(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Task head included: the ticket before its first step is a slice of the model before the search."""
    from earlybert.recipes.finetuning import stages

    started: list[dict[str, torch.Tensor]] = []
    real = stages.adamw

    def spy(model: Any, **settings: Any) -> Any:
        started.append({name: value.clone() for name, value in model.state_dict().items()})
        return real(model, **settings)

    monkeypatch.setattr(stages, "adamw", spy)
    config_values = dict(zip(flags[::2], flags[1::2], strict=True))
    assert run("finetune", *flags, "--output", tmp_path / "run", "--epochs", "0.5", "--search-steps", "8") == 0
    config = Run_config(tmp_path / "run")
    theta_0 = Bench.set_up(config).theta_0()
    expected = eb.apply(theta_0, eb.Ticket.load(tmp_path / "run" / "ticket.json")).state_dict()
    assert len(started) == 1
    assert all(torch.equal(value, expected[name]) for name, value in started[0].items())
    assert config_values["--task"] == "sst2"


def Run_config(folder: Path) -> Finetune:  # noqa: N802
    return Finetune(**yaml.safe_load((folder / "config.yaml").read_text()))


def test_keep_with_nothing_cut_is_the_uninterrupted_run(flags: list[str], tmp_path: Path) -> None:
    """Coefficients held at 1, nothing removed: search, cut and all, the weights are those of the dense run."""
    common = [*flags, "--lr", "1e-3", "--epochs", "1", "--dense-epochs", "1"]
    nothing = ["--weights", "keep", "--heads", "0", "--neurons", "0", "--gate-lr", "0", "--search-steps", "7"]
    assert run("finetune", *common, *nothing, "--output", tmp_path / "kept") == 0
    assert run("finetune", *common, "--method", "dense", "--output", tmp_path / "dense") == 0
    assert equal(tmp_path / "kept", tmp_path / "dense")
    taken = [entry for entry in steps(tmp_path / "kept") if entry[0] != "draw"]
    dense = steps(tmp_path / "dense")
    assert [(step, loss) for _, step, loss in taken] == [(step, loss) for _, step, loss in dense]


@pytest.mark.parametrize("method", ["reset", "keep", "dense"])
def test_killed_anywhere_and_resumed_is_bit_equal(
    method: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*flags, "--search-steps", "10", "--epochs", "1.5", "--dense-epochs", "1"]
    settings += ["--method", "dense"] if method == "dense" else ["--weights", method]
    assert run("finetune", *settings, "--output", tmp_path / "whole") == 0
    total = len([entry for entry in steps(tmp_path / "whole") if entry[0] != "draw"])
    for fatal in {3, 6, 12, 13, total}:
        out = tmp_path / f"killed-{fatal}"
        revive = dying_at(monkeypatch, fatal)
        with pytest.raises(Killed):
            run("finetune", *settings, "--output", out)
        revive()
        assert not (out / "metrics.json").exists()
        assert run("finetune", *settings, "--output", out) == 2  # the folder exists
        assert run("finetune", *settings, "--output", out, "--seed", "7", "--resume") == 2  # other settings
        assert run("finetune", "--output", out, "--resume") == 0  # it knows its settings
        assert equal(tmp_path / "whole", out)
        assert steps(out) == steps(tmp_path / "whole")
        if method != "dense":
            assert (out / "history.bin").read_bytes() == (tmp_path / "whole" / "history.bin").read_bytes()
            assert (out / "ticket.json").read_bytes() == (tmp_path / "whole" / "ticket.json").read_bytes()


@pytest.mark.slow
def test_a_process_killed_for_real_resumes_bit_equal(flags: list[str], tmp_path: Path) -> None:
    settings = [*flags, "--search-steps", "30", "--epochs", "8"]
    command = ["earlybert", "finetune", *settings, "--output"]
    warm.run(*command, tmp_path / "whole")
    for mark in ('"search", "step": 10', '"train", "step": 30'):
        out = tmp_path / f"killed-{mark[1]}"
        process = warm.Process(*command, out)
        log = out / "steps.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (log.exists() and mark in log.read_text()):
            time.sleep(0.005)
        process.kill()
        assert process.finish().returncode == -signal.SIGKILL
        warm.run(*command, out, "--resume")
        assert equal(tmp_path / "whole", out)
        assert steps(out) == steps(tmp_path / "whole")


def test_one_seed_is_bit_equal_and_another_is_not(flags: list[str], tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert (
            run(
                "finetune",
                *flags,
                "--epochs",
                "0.5",
                "--search-steps",
                "5",
                "--seed",
                seed,
                "--output",
                tmp_path / name,
            )
            == 0
        )
    assert equal(tmp_path / "a", tmp_path / "b")
    assert not equal(tmp_path / "a", tmp_path / "c")


def test_nan_loss_stops_at_the_step_and_keeps_the_last_good_checkpoint(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*flags, "--method", "dense", "--dense-epochs", "1", "--output", str(tmp_path / "run")]
    real = EagerStep.__call__
    calls = 0

    def poisoned(self: EagerStep, batches: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(self, batches) * (float("nan") if calls == 7 else 1.0)

    monkeypatch.setattr(EagerStep, "__call__", poisoned)
    assert run("finetune", *settings) == 3
    assert "the loss is nan at step 7" in capsys.readouterr().err
    from earlybert.train import checkpoint

    state = checkpoint.peek(tmp_path / "run" / "checkpoint.safetensors")
    assert len(state.pop("text")) == 64
    assert state == {"stage": "train", "step": 4, "command": "finetune"}
    monkeypatch.setattr(EagerStep, "__call__", real)
    assert run("finetune", *settings, "--resume") == 0


def test_reset_is_refused_when_the_model_has_changed(flags: list[str], tmp_path: Path, model_folder: Path) -> None:
    import shutil

    from tests.conftest import tiny_model

    mine = tmp_path / "model"
    shutil.copytree(model_folder, mine)
    changed = ["--model", str(mine), *flags[2:]]
    assert run("search", *changed, "--search-steps", "3", "--output", tmp_path / "run") == 0
    assert run("draw", tmp_path / "run") == 0
    tiny_model("bert", head=False, seed=5).save_pretrained(mine)
    assert run("train", tmp_path / "run") == 2


def test_the_search_follows_the_dense_schedule_and_stops_when_settled(flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    easy = ["--settle-threshold", "1", "--settle-min-steps", "10"]
    assert run("search", *flags, *easy, "--dense-epochs", "6", "--output", out) == 0
    scores = eb.Scores.load(out / "scores.safetensors")
    assert scores.info["ended"] == "settled"
    assert scores.info["cap"] == 100  # 0.2 epoch is 5 steps here
    assert scores.steps == 20 + 3 * 20
    config = Run_config(out)
    lengths = plan(Bench.set_up(config))
    rates = [line["lr"] for line in read_steps(out / "steps.jsonl")]
    assert rates == pytest.approx([1e-3 * (144 - done) / 144 for done in range(scores.steps)])
    assert lengths.search_schedule(144) == 0


def test_compare_trains_the_rival_at_the_same_flops(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run("finetune", *flags, "--compare", "--recipe", "paper", "--output", out) == 0
    result = json.loads((out / "compare.json").read_text())
    rows = result["rows"]
    assert list(rows) == ["dense", "dense_same_flops", "ticket"]
    one_step = rows["dense"]["flops"] / rows["dense"]["stages"]["train"]["steps"]
    assert rows["ticket"]["flops"] - 1.5 * one_step < rows["dense_same_flops"]["flops"] <= rows["ticket"]["flops"]
    parts = result["saved"]
    assert parts["time"] == pytest.approx(parts["fewer_epochs"] + parts["smaller_network"] + parts["search"])
    rates = [line["lr"] for line in read_steps(out / "dense_same_flops" / "steps.jsonl")]
    assert rates[0] == 2e-3  # the ticket's learning rate
    assert rates[-1] == pytest.approx(2e-3 / len(rates))  # and a schedule that ends where it ends
    said = capsys.readouterr().out
    assert "dense, same cost" in said
    assert "search + 2 epochs" in said
    assert f"next: earlybert draw {out} --heads 2 --into" in said


def test_compare_proposes_no_other_ticket_where_none_could_be_trained(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = ["--weights", "keep", "--search-steps", "6", "--epochs", "1", "--dense-epochs", "1"]
    assert run("finetune", *flags, *keep, "--compare", "--output", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "train 24 (search at most 6 of them)" in said
    assert "1 epochs," in said
    assert "with search" in said
    assert "earlybert draw" not in said


def test_a_search_that_had_settled_does_not_go_on_when_resumed(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from earlybert.recipes.finetuning import stages

    easy = ["--settle-threshold", "1", "--settle-window", "1", "--settle-min-steps", "20", "--dense-epochs", "6"]
    assert run("search", *flags, *easy, "--output", tmp_path / "whole") == 0

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    real = stages.collect
    monkeypatch.setattr(stages, "collect", killed)
    with pytest.raises(Killed):
        run("search", *flags, *easy, "--output", tmp_path / "killed")
    monkeypatch.setattr(stages, "collect", real)
    assert run("search", "--output", tmp_path / "killed", "--resume") == 0
    whole, killed_scores = (eb.Scores.load(tmp_path / name / "scores.safetensors") for name in ("whole", "killed"))
    assert (whole.steps, whole.digest()) == (killed_scores.steps, killed_scores.digest())
    assert killed_scores.info["ended"] == "settled"


def test_a_search_is_never_longer_than_the_dense_run_and_says_so(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search", *flags, "--dense-epochs", "1", "--output", tmp_path / "run") == 0
    assert eb.Scores.load(tmp_path / "run" / "scores.safetensors").steps == 24
    lines = list(read_steps(tmp_path / "run" / "steps.jsonl"))
    assert all(line["lr"] > 0 for line in lines)
    out = capsys.readouterr().out
    assert "hardly better than random" in out
    assert "a ticket saves little" in out


def test_settings_of_a_kept_search_cannot_change_and_a_refusal_changes_nothing(
    flags: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert run("search", *flags, "--weights", "keep", "--search-steps", "5", "--output", out) == 0
    assert run("draw", out) == 0
    before = (out / "config.yaml").read_bytes()
    assert run("train", out, "--lr", "0.1") == 2
    assert run("train", out, "--weights", "reset") == 2
    assert (out / "config.yaml").read_bytes() == before
    assert run("train", out) == 0


def test_weights_that_are_not_finite_are_not_saved(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--method", "dense", "--dense-lr", "1e38", "--dense-steps", "1", "--output", tmp_path / "run"]
    assert run("finetune", *flags, *settings) == 3
    assert "not finite after step 1" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()


def test_ctrl_c_writes_a_checkpoint_and_resuming_is_bit_equal(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*flags, "--checkpoint-every", "0", "--search-steps", "8", "--epochs", "1"]
    assert run("finetune", *settings, "--output", tmp_path / "whole") == 0
    real = EagerStep.__call__
    calls = 0

    def interrupted(self: EagerStep, batches: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (5, 13):
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batches)

    monkeypatch.setattr(EagerStep, "__call__", interrupted)
    assert run("finetune", *settings, "--output", tmp_path / "run") == 130
    assert f"to go on: earlybert finetune --output {tmp_path / 'run'} --resume." in capsys.readouterr().err
    assert run("finetune", "--output", tmp_path / "run", "--resume") == 130
    assert run("finetune", "--output", tmp_path / "run", "--resume") == 0
    assert calls == 8 + 24  # no step was taken twice
    assert equal(tmp_path / "whole", tmp_path / "run")


def test_full_disk_in_a_log_is_one_sentence(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from earlybert.train import steplog

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(steplog, "open", full, raising=False)
    assert run("finetune", *flags, "--search-steps", "3", "--output", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("weights_", ["reset", "keep"])
def test_the_fast_engine_resumes_bit_equal_and_computes_no_padding(
    weights_: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*flags, "--search-steps", "6", "--epochs", "1", "--weights", weights_]  # auto: fast on a CPU
    assert run("finetune", *settings, "--output", tmp_path / "whole") == 0
    revive = dying_at(monkeypatch, 11)
    with pytest.raises(Killed):
        run("finetune", *settings, "--output", tmp_path / "killed")
    revive()
    assert run("finetune", "--output", tmp_path / "killed", "--resume") == 0
    assert equal(tmp_path / "whole", tmp_path / "killed")
    assert run("search", *flags, "--engine", "eager", "--search-steps", "6", "--output", tmp_path / "eager") == 0
    fast, eager = (
        [line["flops"] for line in read_steps(tmp_path / name / "steps.jsonl") if line["stage"] == "search"]
        for name in ("whole", "eager")
    )
    assert len(fast) == len(eager) == 6
    assert all(a <= b for a, b in zip(fast, eager, strict=True))
    assert sum(fast) < 0.95 * sum(eager)
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["engine"] == "RaggedStep"


def test_out_of_memory_is_one_sentence(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(EagerStep, "__call__", full)
    assert run("finetune", *flags, "--output", tmp_path / "run") == 2
    assert "lower --batch-size" in capsys.readouterr().err
