"""Pre-training on two processes (gloo, CPU): against one process, and with one of them killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import earlybert as eb
from tests.recipes.conftest import equal, run, steps, weights
from tests.recipes.jobs import (
    alone,
    environment,
    finished,
    killed_and_resumed,
    launched,
    notes_of,
    pair,
    together,
    wait_for,
)

pytestmark = pytest.mark.slow


def test_two_processes_are_one_with_twice_the_accumulation(flags: list[str], tmp_path: Path) -> None:
    """Parameters to 1e-5, every example once, and the same bits on both ranks."""
    words = [
        *flags,
        "--method",
        "dense",
        "--dropout",
        "0",
        "--lr",
        "5e-3",
        "--second-batch",
        "8",
        "--profile-steps",
        "2",
        "--engine",
        "eager",
    ]
    alone(tmp_path / "one", ["pretrain", *words, "--output", tmp_path / "run-one"])
    launched(tmp_path / "two", ["pretrain", *words, "--output", tmp_path / "run-two"])
    one, first, second = (notes_of(tmp_path / where, rank) for where, rank in (("one", 0), ("two", 0), ("two", 1)))
    for name, value in one["weights"].items():
        torch.testing.assert_close(first["weights"][name], value, rtol=0, atol=1e-5, msg=name)
        assert torch.equal(first["weights"][name], second["weights"][name]), name
    losses = [[loss for *_, loss in steps(tmp_path / name)] for name in ("run-one", "run-two")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    for length, taken in ((24, 15), (48, 5)):
        both, whole = [], []
        for notes, micro_batches, into in ((first, taken, both), (second, taken, both), (one, 2 * taken, whole)):
            mine = [places for at, places in notes["seen"] if at == length][:micro_batches]
            into += [tuple(place) for places in mine for place in places]
        assert len(set(both)) == len(both) == 8 * taken
        assert set(both) == set(whole)
    metrics = json.loads((tmp_path / "run-two" / "metrics.json").read_text())
    assert metrics["processes"] == 2
    assert metrics["flops"] == json.loads((tmp_path / "run-one" / "metrics.json").read_text())["flops"]


def test_a_killed_rank_ends_the_job_with_a_sentence_and_the_run_goes_on(
    flags: list[str],
    tmp_path: Path,
) -> None:
    """With dropout, in search and in training: the result is that of the job that was left alone, to the bit."""
    words = [*flags, "--steps", "60", "--second-batch", "8", "--search-steps", "24"]
    together(tmp_path / "whole", ["pretrain", *words, "--output", tmp_path / "run"])
    whole = [notes_of(tmp_path / "whole", rank) for rank in range(2)]
    assert whole[0]["tickets"] == whole[1]["tickets"]
    ticket = eb.Ticket.load(tmp_path / "run" / "ticket.json")
    assert eb.Ticket.from_dict(whole[1]["tickets"][0]) == ticket

    out = tmp_path / "killed"
    kills = ((1, '"search", "step": 12,'), (0, '"train", "step": 20,'))
    killed_and_resumed(tmp_path / "notes", ["pretrain", *words], out, kills)
    assert equal(tmp_path / "run", out)
    assert steps(out) == steps(tmp_path / "run")
    assert (out / "history.bin").read_bytes() == (tmp_path / "run" / "history.bin").read_bytes()
    again = [notes_of(tmp_path / "notes", rank) for rank in range(2)]
    for name, value in whole[1]["weights"].items():
        assert torch.equal(again[1]["weights"][name], value), name


def test_a_sharded_job_that_was_killed_gives_what_one_process_gives(flags: list[str], tmp_path: Path) -> None:
    """The same ticket, and parameters to 1e-5, of an ordinary model; `tests/train/test_sharded.py` has resuming."""
    words = [*flags, "--dropout", "0", "--lr", "5e-3", "--second-batch", "8", "--engine", "fast"]
    words += ["--save-every", "10"]
    alone(tmp_path / "one", ["pretrain", *words, "--output", tmp_path / "run-one"])
    out = tmp_path / "run-two"
    processes = pair(tmp_path / "two", ["pretrain", *words, "--shard", "full", "--output", out])
    wait_for(out, '"train", "step": 8,')
    processes[1].kill()
    left, _ = finished(processes)
    assert left.returncode == 2, left.stderr
    assert "another process of the job has ended" in left.stderr
    together(tmp_path / "two", ["pretrain", "--resume", "--output", out])
    one, two = weights(tmp_path / "run-one"), weights(out)
    assert set(one) == set(two)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=name)
    tickets = [eb.Ticket.load(folder / "ticket.json") for folder in (tmp_path / "run-one", out)]
    assert (tickets[0].heads, tickets[0].neurons) == (tickets[1].heads, tickets[1].neurons)
    assert eb.ticket_of(eb.load(out / "model")) == tickets[1]
    on_the_way = [eb.load(folder / "checkpoints" / "step-10") for folder in (tmp_path / "run-one", out)]
    assert eb.ticket_of(on_the_way[1]) == tickets[1]
    for name, value in on_the_way[0].state_dict().items():
        torch.testing.assert_close(on_the_way[1].state_dict()[name], value, rtol=0, atol=1e-5, msg=name)
    scores = [json.loads((folder / "metrics.json").read_text())["score"] for folder in (tmp_path / "run-one", out)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)


def accelerated(words: list[Any], where: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """As a person launches it who has never run `accelerate config`."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options]
    defaults = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [*launcher, *defaults, "--main_process_port", "0", "-m", "earlybert", "pretrain", *words]
    job = environment(HF_HOME=where)
    return subprocess.run([str(word) for word in command], cwd=where, env=job, capture_output=True, text=True)


def test_accelerate_launches_two_processes(flags: list[str], tmp_path: Path) -> None:
    """The ticket is that of one process. On a CPU accelerate takes --multi_gpu for it: --cpu starts one process."""
    pytest.importorskip("accelerate.commands.launch")
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    words = [*flags, "--dropout", "0", "--second-batch", "8", "--steps", "10", "--second", "0", "--eval-every", "0"]
    assert run("pretrain", *words, "--output", tmp_path / "run-one") == 0
    done = accelerated([*words, "--output", tmp_path / "run-two"], tmp_path, "--multi_gpu")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("2 processes") == 1
    assert "8 rows (1 x 4)" in done.stdout
    assert json.loads((tmp_path / "run-two" / "metrics.json").read_text())["processes"] == 2
    tickets = [eb.Ticket.load(tmp_path / name / "ticket.json") for name in ("run-one", "run-two")]
    assert (tickets[0].heads, tickets[0].neurons) == (tickets[1].heads, tickets[1].neurons)
    one, two = weights(tmp_path / "run-one"), weights(tmp_path / "run-two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=name)


def test_a_world_that_does_not_divide_the_batch_is_refused(flags: list[str], tmp_path: Path) -> None:
    for end in finished(pair(tmp_path / "notes", ["pretrain", *flags, "--output", tmp_path / "run"])):
        assert end.returncode == 2, end.stderr
        assert "4 rows in phase 2 cannot be made of micro-batches of 4 rows on 2 processes" in end.stderr
