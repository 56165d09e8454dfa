"""Ordinary models of a pre-training run that is not finished: on the way, after a kill, and of a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertForPreTraining

import earlybert as eb
from earlybert.anatomy import Refused
from earlybert.recipes.lock import locked
from earlybert.recipes.pretraining import models
from earlybert.recipes.pretraining.bench import Bench
from earlybert.recipes.pretraining.run import PretrainRun
from earlybert.train import Diverged, checkpoint
from earlybert.train.loop import Done
from tests.recipes.conftest import Killed, dying_at, equal, run

from .conftest import FIRST, SEARCH


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def values(folder: Path) -> dict[str, torch.Tensor]:
    return eb.load(folder).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(value, b[name]) for name, value in a.items())


def test_models_on_the_way_load_and_change_nothing(flags: list[str], tmp_path: Path) -> None:
    """The newest two of those every 3 steps; each is what the run's checkpoint of that step holds."""
    assert run("pretrain", *flags, "--output", tmp_path / "plain") == 0
    assert not (tmp_path / "plain" / "checkpoints").exists()
    out = tmp_path / "run"
    assert run("pretrain", *flags, "--save-every", "3", "--output", out) == 0
    assert equal(tmp_path / "plain", out)
    assert names(out / "checkpoints") == ["step-12", "step-15"]
    model = eb.load(out / "checkpoints" / "step-12")
    assert type(model) is BertForPreTraining
    assert eb.ticket_of(model) == eb.Ticket.load(out / "ticket.json")
    assert AutoTokenizer.from_pretrained(out / "checkpoints" / "step-12").mask_token == "[MASK]"
    steps = [values(out / "checkpoints" / name) for name in ("step-12", "step-15")]
    assert not same(*steps)


def test_a_dense_one_is_stock_and_all_of_them_may_stay(flags: list[str], tmp_path: Path) -> None:
    words = ["--method", "dense", "--second", "0", "--save-every", "5", "--keep-models", "0"]
    assert run("pretrain", *flags, *words, "--output", tmp_path / "run") == 0
    # 20 steps in all: the last is in model/
    assert names(tmp_path / "run" / "checkpoints") == ["step-10", "step-15", "step-5"]
    stock = BertForPreTraining.from_pretrained(tmp_path / "run" / "checkpoints" / "step-5")
    assert same(stock.state_dict(), values(tmp_path / "run" / "checkpoints" / "step-5"))


def test_killed_and_gone_on_with_the_same_models_are_there(
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [*flags, "--save-every", "3"]
    assert run("pretrain", *words, "--output", tmp_path / "whole") == 0
    for fatal in (SEARCH + 8, SEARCH + FIRST + 2):  # behind the models of steps 6 and 12
        out = tmp_path / f"killed-{fatal}"
        revive = dying_at(monkeypatch, fatal)
        with pytest.raises(Killed):
            run("pretrain", *words, "--output", out)
        revive()
        assert [eb.ticket_of(eb.load(path)) is not None for path in (out / "checkpoints").iterdir()] == [True, True]
        assert run("pretrain", "--output", out, "--resume") == 0
        for name in ("checkpoints/step-12", "checkpoints/step-15", "model"):
            assert same(values(out / name), values(tmp_path / "whole" / name))
        assert names(out / "checkpoints") == ["step-12", "step-15"]


@pytest.mark.parametrize(
    ("at", "left"), [("save", ["step-5"]), ("rename", ["step-10", "step-5"]), ("rmtree", ["step-10"])]
)
def test_killed_while_one_takes_the_place_of_another(
    at: str,
    left: list[str],
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one that is kept: whenever it ends, one whole model is there, and going on clears what is left over."""
    out = tmp_path / "run"
    words = [*flags, "--save-every", "5", "--keep-models", "1"]
    rename, rmtree = Path.rename, shutil.rmtree

    def renamed(path: Path, to: Any) -> Path:
        if (at, Path(to).name) == ("save", "step-10") or (at, path.name) == ("rename", "step-5"):
            raise Killed
        return rename(path, to)

    def removed(path: Any, *rest: Any, **more: Any) -> None:
        inside = Path(path) / "step-5"
        if at == "rmtree" and inside.exists():
            (inside / "model.safetensors").unlink()  # half of it is gone
            raise Killed
        rmtree(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", renamed)
        patch.setattr(shutil, "rmtree", removed)
        with pytest.raises(Killed):
            run("pretrain", *words, "--output", out)
    assert [name for name in names(out / "checkpoints") if not name.startswith(".")] == left
    assert all(eb.ticket_of(eb.load(out / "checkpoints" / name)) is not None for name in left)
    with locked(out):
        assert names(out / "checkpoints") == left
    assert run("pretrain", "--output", out, "--resume") == 0
    assert names(out / "checkpoints") == ["step-15"]


def test_what_is_newer_than_a_resumed_run_goes_and_other_files_stay(tmp_path: Path) -> None:
    for name in ("step-4", "step-8", "step-12", "step-16", "step-x", "notes"):
        (tmp_path / name).mkdir()
    models.prune(tmp_path, newest=12, keep=2)
    assert names(tmp_path) == ["notes", "step-12", "step-8", "step-x"]
    models.prune(tmp_path, newest=12, keep=0)
    assert names(tmp_path) == ["notes", "step-12", "step-8", "step-x"]


def test_weights_that_are_not_finite_replace_nothing(flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--method", "dense", "--second", "0", "--steps", "9", "--save-every", "8"]
    assert run("pretrain", *flags, *words, "--output", out) == 0
    opened = PretrainRun.open(out)
    model = eb.load(out / "model")
    observer = models.Models(Bench.set_up(opened.config), opened, model, None, last=9)
    there = values(out / "checkpoints" / "step-8")
    next(model.parameters()).data[0] = float("nan")
    with pytest.raises(Diverged):
        observer(Done(8, torch.zeros(()), [], 1.0))
    assert same(values(out / "checkpoints" / "step-8"), there)


@pytest.mark.parametrize("method", ["ticket", "dense"])
def test_the_checkpoint_of_a_stopped_run_becomes_a_model(
    method: str,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same as the model that a run leaves at that step, and as wide as its ticket."""
    out, searched = tmp_path / "run", SEARCH * (method == "ticket")
    words = [*flags, "--method", method, "--save-every", "8"]
    revive = dying_at(monkeypatch, 3)
    with pytest.raises(Killed):
        run("pretrain", *words, "--output", out)
    revive()
    assert run("export", out, "--to", "model", "--output", tmp_path / "early") == 2
    said = capsys.readouterr().err
    assert "no checkpoint of its training, so there is no model in it yet; go on with it by earlybert pretrain " in said
    revive = dying_at(monkeypatch, searched + 10)
    with pytest.raises(Killed):
        run("pretrain", "--output", out, "--resume")
    revive()
    assert checkpoint.peek(out / "checkpoint.safetensors")["step"] == 8
    assert run("export", out, "--to", "model", "--output", tmp_path / "model") == 0
    assert same(values(tmp_path / "model"), values(out / "checkpoints" / "step-8"))
    assert eb.ticket_of(eb.load(tmp_path / "model")) == (
        eb.Ticket.load(out / "ticket.json") if method == "ticket" else None
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "model").mask_token == "[MASK]"
    assert run("export", out, "--to", "model", "--output", tmp_path / "model") == 2
    assert run("export", tmp_path / "model", "--to", "model", "--output", tmp_path / "again") == 2
    assert "is a model folder already" in capsys.readouterr().err
    assert run("pretrain", "--output", out, "--resume") == 0
    assert run("export", out, "--to", "model", "--output", tmp_path / "again") == 2
    assert not (tmp_path / "again").exists()


def test_a_checkpoint_of_another_ticket_is_refused(
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    revive = dying_at(monkeypatch, SEARCH + 6)
    with pytest.raises(Killed):
        run("pretrain", *flags, "--output", out)
    revive()
    ticket = eb.Ticket.load(out / "ticket.json")
    wide = eb.draw(eb.Scores.load(out / "scores.safetensors"), heads=0, neurons=0.3, align=8)
    assert wide.heads != ticket.heads
    wide.save(out / "ticket.json")
    with pytest.raises(Refused, match="another model"):
        models.stopped(out)
