"""Whole pre-training runs on a tiny corpus: phases, schedules, budgets of time, refusals."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import earlybert as eb
from earlybert.recipes.pretraining import stages
from earlybert.recipes.pretraining.bench import Bench
from earlybert.train import budget
from earlybert.train.step import EagerStep
from earlybert.train.steplog import read_steps
from tests.recipes.conftest import Killed, assert_same, dying_at, run, steps

from .conftest import FIRST, SEARCH, SECOND, config_of


def rates(folder: Path, stage: str) -> list[float]:
    return [line["lr"] for line in read_steps(folder / "steps.jsonl") if line["stage"] == stage]


def nvidia(steps: int, lr: float, warmup: float) -> list[float]:
    """`PolyWarmUpScheduler` with degree 0.5, step by step."""
    progress = np.arange(1, steps + 1, dtype=np.float64) / steps
    return (lr * np.where(progress < warmup, progress / warmup, (1 - progress) ** 0.5)).tolist()


def test_a_whole_run_leaves_its_folder_and_a_model_that_loads(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer, BertForPreTraining

    out = tmp_path / "run"
    words = ["--steps", "160", "--lr", "3e-2", "--profile-steps", "2", "--log", "json"]
    assert run("pretrain", *flags, *words, "--engine", "eager", "--output", out) == 0
    assert {file.name for file in out.iterdir()} == {
        *("config.yaml", "scores.safetensors", "history.bin", "ticket.json", "steps.jsonl"),
        *("evaluations.jsonl", "metrics.json", "model", "profile.json"),
    }
    metrics = json.loads((out / "metrics.json").read_text())
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1] == {"event": "done", "command": "pretrain", "run": str(out), "metrics": metrics}
    shown = {(event["stage"], event["title"]) for event in events if event["event"] == "step"}
    assert shown == {("search", "search"), ("train", "phase 1"), ("train", "phase 2")}
    assert any(event.get("mask_distance") for event in events)
    assert set(metrics["profile"]) == {"search", "train"}
    assert all(seconds > 0 for seconds in metrics["profile"]["train"]["seconds"].values())
    assert metrics["memory"]["before"]["parameters"] == 4 * metrics["parameters"]["before"]
    assert metrics["memory"]["after"]["optimizer"] == 8 * metrics["parameters"]["after"]
    assert metrics["stages"]["search"]["steps"] == SEARCH == len(eb.History(out / "history.bin"))
    assert metrics["stages"]["train"]["steps"] == 96 + 32
    lines = [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(8, 129, 8))
    assert metrics["score"]["mlm_loss"] < lines[0]["mlm_loss"] - 0.02
    assert lines[0]["seconds"] < lines[-1]["seconds"] <= metrics["elapsed"]
    model = eb.load(out / "model")
    assert type(model) is BertForPreTraining
    ticket = eb.Ticket.load(out / "ticket.json")
    assert eb.ticket_of(model) == ticket
    assert {len(kept) for kept in ticket.heads} == {3}
    assert abs(ticket.neurons_kept - 0.7 * 128) < 8
    bench = Bench.set_up(config_of(out))
    assert bench.score(model, bench.plan.train[0]) == pytest.approx(metrics["score"], abs=1e-6)
    assert bench.flops() == metrics["flops"]  # as was said before it began; the fast step computes less than full rows
    assert AutoTokenizer.from_pretrained(out / "model").mask_token == "[MASK]"


def test_schedules_are_those_of_the_paper(flags: list[str], tmp_path: Path) -> None:
    """The search is a prefix of the dense run; a ticket's phases are compressed, and phase 2 begins anew."""
    for method in ("ticket", "dense"):  # the eager step counts the padding of short rows, so lengths can be told
        assert run("pretrain", *flags, "--engine", "eager", "--method", method, "--output", tmp_path / method) == 0
    dense = [*nvidia(15, 2e-2, 0.2843), *nvidia(5, 1e-2, 0.3)]
    assert rates(tmp_path / "dense", "train") == pytest.approx(dense)
    assert rates(tmp_path / "ticket", "search") == pytest.approx(dense[:SEARCH])
    compressed = [*nvidia(FIRST, 2e-2, 0.2843), *nvidia(SECOND, 1e-2, 0.3)]
    assert rates(tmp_path / "ticket", "train") == pytest.approx(compressed)
    rows = [line["rows"] for line in read_steps(tmp_path / "ticket" / "steps.jsonl") if line["stage"] == "train"]
    assert rows == [8] * FIRST + [4] * SECOND
    tokens = {line["tokens"] // line["rows"] for line in read_steps(tmp_path / "dense" / "steps.jsonl")}
    assert tokens == {24, 48}
    losses = {name: [loss for *_, loss in steps(tmp_path / name)] for name in ("ticket", "dense")}
    assert losses["ticket"][0] == losses["dense"][0]  # the same model, the same batch


def test_reset_is_the_random_start_and_phase_2_keeps_the_moments(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, torch.Tensor]] = []
    optimizers: list[Any] = []
    real = stages.lamb

    def spy(model: Any, **options: Any) -> Any:
        started.append({name: value.clone() for name, value in model.state_dict().items()})
        optimizers.append(real(model, **options))
        return optimizers[-1]

    monkeypatch.setattr(stages, "lamb", spy)
    assert run("pretrain", *flags, "--output", tmp_path / "run") == 0
    theta_0 = Bench.set_up(config_of(tmp_path / "run")).theta_0()
    assert all(torch.equal(value, theta_0.state_dict()[name]) for name, value in started[0].items())
    expected = eb.apply(theta_0, eb.Ticket.load(tmp_path / "run" / "ticket.json")).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in started[1].items())
    searching, training = optimizers
    coefficients = searching.param_groups[-1]
    assert (coefficients["name"], coefficients["adapt"], coefficients["weight_decay"]) == ("coefficients", False, 0)
    counts = {float(state["step"]) for state in training.state.values()}
    assert counts == {FIRST + SECOND}
    assert {group["base_lr"] for group in training.param_groups} == {1e-2}


class Hours:
    """A clock that a step moves on by one second, scoring by a minute, and nothing else does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for kind, name, seconds in ((EagerStep, "__call__", 1.0), (Bench, "score", 60.0)):
            monkeypatch.setattr(kind, name, self._slow(getattr(kind, name), seconds))
        monkeypatch.setattr(budget.time, "monotonic", lambda: self.now)

    def _slow(self, real: Any, seconds: float) -> Any:
        def slow(*given: Any) -> Any:
            self.now += seconds
            return real(*given)

        return slow


def test_with_a_budget_the_schedule_follows_the_clock_also_over_a_kill(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36 s: 6 of search, then three quarters of the other 30 in phase 1. Scoring does not count."""
    clock = Hours(monkeypatch)
    real = time.monotonic
    words = [*flags, "--minutes", "0.6", "--eval-every", "10"]
    assert run("pretrain", *words, "--output", tmp_path / "whole") == 0
    assert real() == clock.now  # the clock was the made-up one
    first = [2e-2 * (p / 0.2843 if p < 0.2843 else (1 - p) ** 0.5) for p in np.arange(23) / 22.5]
    second = [1e-2 * (p / 0.3 if p < 0.3 else (1 - p) ** 0.5) for p in (np.arange(23, 30) - 22.5) / 7.5]
    assert rates(tmp_path / "whole", "train") == pytest.approx([*first, *second])
    assert len(rates(tmp_path / "whole", "search")) == SEARCH
    for fatal in (14, 33):
        revive = dying_at(monkeypatch, fatal)
        out = tmp_path / f"killed-{fatal}"
        with pytest.raises(Killed):
            run("pretrain", *words, "--output", out)
        revive()
        clock.now += 500  # what passes while nothing runs does not count
        assert run("pretrain", "--output", out, "--resume") == 0
        assert_same(tmp_path / "whole", out)


def test_a_budget_that_ends_in_the_search_is_refused(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At its end, or as soon as it can be known: at a second a step 40 steps are more than half a minute."""
    Hours(monkeypatch)
    remedy = "; start a new run with more --minutes or fewer --search-steps."
    assert run("pretrain", *flags, "--minutes", "0.05", "--output", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "about 0.1 minutes, by its first 3 of 6 steps, and the budget is 0.05 in all" + remedy in said
    words = [*flags, "--minutes", "0.5", "--search-steps", "40", "--output", tmp_path / "long"]
    assert run("pretrain", *words) == 2
    said = capsys.readouterr().err
    assert "about 0.67 minutes, by its first 10 of 40 steps, and the budget is 0.5 in all" + remedy in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch", "6"], "batch of 6 rows in phase 1 cannot be made of micro-batches of 4"),
        (["--second-batch", "2"], "phase 2 cannot be made"),
        (["--positions", "40"], "rows of 48 tokens are longer than the model's 40 positions"),
        (["--search-steps", "16"], "search of 16 steps is longer than the 15 steps of phase 1"),
        (["--second-warmup", "0.1"], "phase 2 has only 4 steps, too few for a warm-up over 10.00% of them"),
        (["--heads", "4"], "cannot remove 4 of 4 heads"),
        (["--hidden", "30"], "hidden 30 is not a multiple of attention_heads 4"),
        (["--length", "4"], "a row of 4 tokens is too short"),
        (["--minutes", "1", "--second", "3"], "with minutes, second is a share"),
        (["--corpus", "/nowhere"], "/nowhere holds no prepared corpus"),
        (["--shard", "full"], "shard full needs a job of several processes; launch it with torchrun"),
        (["--method", "imp"], "method"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    words: list[str], sentence: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pretrain", *flags, *words, "--output", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_one_process_where_accelerate_was_asked_for_more_says_so(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The environment is the one accelerate makes for `--cpu --num_processes 2`."""
    import argparse

    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    words = [*flags, "--method", "dense", "--steps", "2", "--second", "0", "--warmup", "0", "--eval-every", "0"]
    for count, told in ((2, True), (1, False)):
        asked: list[str] = ["--cpu", "--num_processes", str(count), "--num_machines", "1", "--mixed_precision", "no"]
        parsed: argparse.Namespace = launch_command_parser().parse_args([*asked, "--dynamo_backend", "no", "script.py"])
        with monkeypatch.context() as patch:
            for name, value in prepare_simple_launcher_cmd_env(parsed)[1].items():
                patch.setenv(name, value)
            assert run("pretrain", *words, "--output", tmp_path / str(count)) == 0
        assert ("asked for several processes and began one" in capsys.readouterr().out) == told


def test_without_a_corpus(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pretrain", *flags[2:], "--output", tmp_path / "run") == 2
    assert "give --corpus" in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_text_wherever_that_lies_now(
    flags: list[str],
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("pretrain", *flags, "--output", tmp_path / "whole") == 0
    revive = dying_at(monkeypatch, 16)
    with pytest.raises(Killed):
        run("pretrain", *flags, "--output", tmp_path / "run")
    revive()
    moved = tmp_path / "moved"
    shutil.copytree(corpus_folder, moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(corpus_folder, other)
    (other / "manifest.json").write_text(json.dumps({**manifest, "more": 1}))
    capsys.readouterr()
    assert run("pretrain", "--output", tmp_path / "run", "--resume", "--corpus", other) == 2
    assert "begun on another text" in capsys.readouterr().err
    shard = other / manifest["shards"][0]["file"]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    assert run("pretrain", "--output", tmp_path / "run", "--resume", "--corpus", other) == 2
    assert "(checksum)" in capsys.readouterr().err
    assert run("pretrain", "--output", tmp_path / "run", "--resume", "--corpus", moved) == 0
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_random_ticket_needs_no_search(flags: list[str], tmp_path: Path) -> None:
    assert run("pretrain", *flags, "--method", "random", "--output", tmp_path / "run") == 0
    assert not (tmp_path / "run" / "history.bin").exists()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["ticket"]["source"] == "random"
    assert set(metrics["stages"]) == {"draw", "train"}
    assert metrics["stages"]["train"]["steps"] == FIRST + SECOND


def test_a_cut_model_is_fine_tuned_as_it_is(
    flags: list[str], tmp_path: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its encoder is the pre-trained one to the bit, its head is new, and nothing may cut it again."""
    from earlybert.config.finetune import Finetune
    from earlybert.recipes.finetuning.bench import Bench as FinetuneBench

    assert run("pretrain", *flags, "--output", tmp_path / "pre") == 0
    where = tmp_path / "pre" / "model"
    data = ["--task", "sst2", "--data-dir", data_dir, "--max-length", "16", "--device", "cpu", "--precision", "no"]
    start = ["finetune", "--model", where, *data]
    for method in ("ticket", "layerdrop", "imp", "random"):
        assert run(*start, "--method", method, "--align", "8", "--output", tmp_path / method) == 2
        assert "already cut" in capsys.readouterr().err
        assert not (tmp_path / method).exists()
    words = ["--method", "dense", "--dense-epochs", "1", "--engine", "fast"]
    assert run(*start, *words, "--output", tmp_path / "fine") == 0
    pretrained, tuned = eb.load(where), eb.load(tmp_path / "fine" / "model")
    assert type(tuned).__name__ == "BertForSequenceClassification"
    assert eb.ticket_of(tuned) == eb.ticket_of(pretrained) is not None
    config = Finetune(**yaml.safe_load((tmp_path / "fine" / "config.yaml").read_text()))
    theta_0 = FinetuneBench.set_up(config).theta_0()
    kept = dict(pretrained.bert.named_parameters())
    assert all(torch.equal(value, kept[name]) for name, value in theta_0.bert.named_parameters())  # pyright: ignore
    metrics = json.loads((tmp_path / "fine" / "metrics.json").read_text())
    assert metrics["parameters"]["before"] == metrics["parameters"]["after"] == tuned.num_parameters()
    assert run("evaluate", tmp_path / "fine") == 0
    assert run("search", "--model", where, *data, "--output", tmp_path / "search") == 2


def test_without_next_sentences_a_plain_masked_model_comes_out(flags: list[str], tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    words = ["--pairs", "false", "--whole-words", "true", "--method", "dense", "--second", "0"]
    assert run("pretrain", *flags, *words, "--output", tmp_path / "run") == 0
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model")  # stock: it is not cut
    bench = Bench.set_up(config_of(tmp_path / "run"))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert bench.score(model, bench.plan.train[0]) == pytest.approx(metrics["score"], abs=1e-6)
    assert set(metrics["score"]) == {"mlm_loss", "masked_accuracy"}
