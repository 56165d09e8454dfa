"""Fine-tuning on two processes (gloo, CPU): against one process, with every ingredient, and with one of them killed."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import earlybert as eb
from earlybert.anatomy import Refused
from earlybert.recipes.grid import run_grid
from earlybert.train.ranks import Ranks
from tests.conftest import write_model

from .conftest import Killed, dying_at, equal, run, steps, tiny_flags, weights
from .jobs import alone, finished, killed_and_resumed, launched, notes_of, pair, together
from .ranks_worker import RANK


@pytest.fixture
def still(tmp_path: Path, data_dir: Path) -> list[str]:
    """Settings of a run whose model drops nothing out, so that it does not matter who draws which random number."""
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return [*tiny_flags(folder, data_dir), "--batch-size", "5", "--profile-steps", "1"]  # the last batch is one row


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "fast"])
def test_two_processes_are_one(still: list[str], tmp_path: Path, engine: str) -> None:
    """Ticket, losses, cost and weights are those of one process; both ranks end with the same bits."""
    words = ["finetune", *still, "--engine", engine, "--recipe", "paper", "--epochs", "1", "--accumulate", "2"]
    alone(tmp_path / "one", [*words, "--output", tmp_path / "run-one"])
    start = launched if engine == "fast" else together
    start(tmp_path / "two", [*words, "--output", tmp_path / "run-two", "--eval-every", "5", "--compare"])
    one, two = tmp_path / "run-one", tmp_path / "run-two"
    assert eb.Ticket.load(one / "ticket.json") == eb.Ticket.load(two / "ticket.json")
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    assert [each["processes"] for each in metrics] == [1, 2]
    assert metrics[0]["flops"] == metrics[1]["flops"]
    assert metrics[0]["stages"].keys() == metrics[1]["stages"].keys()
    losses = [[loss for *_, loss in steps(folder)] for folder in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=0, atol=1e-4, msg=name)
    ranks = [notes_of(tmp_path / "two", rank)["weights"] for rank in range(2)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])  # of the last dense run
    rows = json.loads((two / "compare.json").read_text())["rows"]
    assert list(rows) == ["dense", "dense_same_flops", "ticket"]
    assert rows["dense_same_flops"]["flops"] == pytest.approx(rows["ticket"]["flops"], rel=0.1)
    assert (two / "report.html").exists()
    assert not (two / "checkpoint.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--recipe", "best", "--epochs", "2", "--score-batches", "3", "--refit", "2"],
        ["--method", "layerdrop_trained", "--dense-epochs", "1"],
        ["--method", "random", "--epochs", "1"],
    ],
)
def test_methods_with_more_to_them_are_one_run_too(still: list[str], tmp_path: Path, words: list[str]) -> None:
    """Scoring, refitting, matching and a carried-over optimizer; layers that are dropped; a random ticket."""
    words = ["finetune", *still, "--engine", "eager", *words]
    alone(tmp_path / "one", [*words, "--output", tmp_path / "run-one"])
    together(tmp_path / "two", [*words, "--output", tmp_path / "run-two"])
    one, two = tmp_path / "run-one", tmp_path / "run-two"
    first, second = (notes_of(tmp_path / "two", rank)["weights"] for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    losses = [[loss for *_, loss in steps(folder)] for folder in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    assert [line[:2] for line in steps(one)] == [line[:2] for line in steps(two)]


@pytest.mark.slow
def test_a_killed_process_ends_the_job_with_a_sentence_and_the_run_goes_on(flags: list[str], tmp_path: Path) -> None:
    """With dropout, in search and in training: the result is that of the job that was left alone, to the bit."""
    words: list[Any] = ["finetune", *flags, "--search-steps", "40", "--epochs", "4"]
    together(tmp_path / "whole", [*words, "--output", tmp_path / "run"])
    out = tmp_path / "killed"
    killed_and_resumed(tmp_path / "notes", words, out, ((1, '"search", "step": 15,'), (0, '"train", "step": 20,')))
    assert equal(tmp_path / "run", out)


@pytest.mark.slow
def test_processes_that_find_different_things_are_refused(
    flags: list[str], tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other rows, or a checkpoint that one alone has, as without shared storage; they would train side by side."""
    for rank in range(2):
        shutil.copytree(data_dir, tmp_path / f"data-{rank}")
    file = tmp_path / "data-1" / "sst2" / "train.jsonl.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()).replace(b"good", b"fine", 1)))
    words = ["finetune", *flags, "--data-dir", tmp_path / f"data-{RANK}", "--output", tmp_path / "run"]
    for end in finished(pair(tmp_path / "notes", words)):
        assert end.returncode == 2, end.stderr
        assert "do not find the same training rows" in end.stderr

    revive = dying_at(monkeypatch, 7)
    with pytest.raises(Killed):
        run("finetune", *flags, "--search-steps", "10", "--output", tmp_path / "run-0")
    revive()
    shutil.copytree(tmp_path / "run-0", tmp_path / "run-1")
    (tmp_path / "run-1" / "checkpoint.safetensors").unlink()
    for end in finished(pair(tmp_path / "notes", ["finetune", "--resume", "--output", tmp_path / f"run-{RANK}"])):
        assert end.returncode == 2, end.stderr
        assert "do not find the same checkpoint" in end.stderr


@pytest.mark.slow
def test_stages_one_by_one(still: list[str], tmp_path: Path) -> None:
    """A search and a training of two processes, with a draw by one between them."""
    together(tmp_path / "search", ["search", *still, "--recipe", "paper", "--output", tmp_path / "run"])
    assert run("draw", tmp_path / "run") == 0
    together(tmp_path / "train", ["train", tmp_path / "run", "--epochs", "1"])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["finetune", "--method", "imp"], "method imp runs on one process; start it without a launcher"),
        (["finetune", "--recipe", "best", "--cuts", "2", "--epochs", "4"], "a run of several cuts runs on one process"),
        (["finetune", "--batch-size", "1"], "2 processes share the rows of a micro-batch, and there are 1"),
    ],
)
def test_what_several_processes_do_not_do(
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.setattr(Ranks, "of_job", lambda: Ranks(0, 2))
    monkeypatch.setattr(Ranks, "said", lambda self, value: value)
    assert run(words[0], *flags, *words[1:], "--output", tmp_path / "run") == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_is_not_launched(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would write the same files one beside the other."""
    folder = tmp_path / "run"
    assert run("search", *flags, "--search-steps", "3", "--output", folder) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    capsys.readouterr()
    assert run("draw", folder) == 2
    assert "earlybert draw runs on one process; start it without a launcher" in capsys.readouterr().err
    assert run("predict", folder, "--file", "new.csv") == 2
    assert "earlybert predict runs on one process" in capsys.readouterr().err
    assert run("advise", *flags) == 2
    assert "this command runs on one process" in capsys.readouterr().err
    words = ["--tasks", "[sst2]", "--methods", "[dense]", "--seeds", "[1]"]
    assert run("compare", *words, "--output", tmp_path / "out") == 2
    assert (
        "a comparison, whose --jobs spreads its runs, runs on one process; start it without a launcher"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(Refused, match="start it without a launcher"):
        run_grid([], tmp_path / "out")
