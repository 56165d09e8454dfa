"""A run that was stopped: which command every other one sends to."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Killed, dying_at, run


@pytest.mark.parametrize("command", ["finetune", "search"])
def test_all_commands_send_to_the_one_that_was_stopped_in_its_search(
    command: str,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    revive = dying_at(monkeypatch, 6)  # a checkpoint is at 4
    with pytest.raises(Killed):
        run(command, *flags, "--search-steps", "8", "--epochs", "0.5", "--output", out)
    revive()
    capsys.readouterr()
    for words in (
        ("evaluate",),
        ("predict",),
        ("draw",),
        ("train",),
        ("export", "--to", "torch", "--output", out / "x"),
    ):
        assert run(words[0], out, *words[1:]) == 2
        assert f"; run earlybert {command} --output {out} --resume first." in capsys.readouterr().err
    assert run(command, "--output", out, "--resume") == 0


def test_stopped_in_training_the_ticket_has_begun_to_be_trained(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    settings = [*flags, "--search-steps", "4", "--epochs", "1"]
    assert run("search", *settings, "--output", out) == 0
    assert run("evaluate", out) == 2
    assert f"; run earlybert draw {out} first." in capsys.readouterr().err
    assert run("draw", out) == 0
    revive = dying_at(monkeypatch, 6)
    with pytest.raises(Killed):
        run("train", out)
    revive()
    assert run("draw", out, "--heads", "2") == 2
    assert "has begun to train its ticket; draw another one into a new folder with --into." in capsys.readouterr().err
    assert run("evaluate", out) == 2
    assert f"; run earlybert train {out} first." in capsys.readouterr().err
