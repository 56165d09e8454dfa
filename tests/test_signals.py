"""SIGINT and SIGTERM end a command with one sentence and a code of their own, whatever they break into."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from earlybert.cli import COMMANDS, RECIPES, main
from earlybert.cli.signals import Signals
from earlybert.recipes import finetune
from earlybert.train.interrupt import Interrupt, Terminated

PROGRAM = """
import os, sys
from earlybert.cli import main

class At:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, At())
sys.argv = ["earlybert", *{words!r}]
sys.exit(main())
"""
MOMENTS = ("jsonargparse", "torch", "torch.nn.modules.linear", "transformers", "earlybert.recipes.finetune")


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell's background job ignores SIGINT, and so would all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stopped_at(module: str, number: signal.Signals, *words: str) -> subprocess.CompletedProcess[str]:
    """A process of its own that gets a signal when it looks for a module."""
    program = PROGRAM.format(module=module, number=int(number), words=words)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize("module", MOMENTS)
def test_ctrl_c_while_modules_are_imported_is_one_sentence(module: str) -> None:
    done = stopped_at(module, signal.SIGINT, "evaluate", "none")
    assert (done.returncode, done.stderr, done.stdout) == (130, "earlybert: stopped.\n", "")


def test_sigterm_while_modules_are_imported_is_one_sentence_and_a_json_line() -> None:
    done = stopped_at("transformers", signal.SIGTERM, "evaluate", "none", "--log", "json")
    assert (done.returncode, done.stderr) == (143, "earlybert: stopped.\n")
    assert json.loads(done.stdout) == {"event": "stopped", "code": 143, "resume": None}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_a_library_makes_of_a_signal_is_still_a_stop(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrapped(run: str) -> Any:
        try:
            signal.raise_signal(number)
        except BaseException:
            raise RuntimeError("Failed to import transformers.models.bert") from None

    monkeypatch.setattr(finetune, "evaluate", wrapped)
    assert main(["evaluate", "none"]) == code
    assert capsys.readouterr().err == "earlybert: stopped.\n"


@pytest.mark.parametrize(("rank", "said"), [("0", "earlybert: stopped.\n"), ("1", "")])
def test_of_several_processes_the_first_says_that_it_was_stopped(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(run: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "evaluate", stopped)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert main(["evaluate", "none", "--log", "json"]) == 130
    found = capsys.readouterr()
    assert found.err == said
    events = [json.loads(line)["event"] for line in found.out.splitlines()]
    assert events == (["start", "stopped"] if said else [])


def test_without_a_signal_a_bug_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: str) -> Any:
        raise RuntimeError("Failed to import transformers.models.bert")

    monkeypatch.setattr(finetune, "evaluate", broken)
    with pytest.raises(RuntimeError, match="Failed to import"):
        main(["evaluate", "none"])


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_the_second_signal_in_the_loop_is_remembered(number: signal.Signals, kind: type[KeyboardInterrupt]) -> None:
    with Signals(at_once=False) as signals:
        signals.loaded()
        with Interrupt() as interrupt:
            signal.raise_signal(number)
            assert interrupt.asked
            assert signals.came is None
            with pytest.raises(kind):
                signal.raise_signal(number)
        assert signals.came == 128 + number


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals(at_once=False) as signals:
            signals.loaded()
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_listening_ends_with_the_command() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Signals(at_once=True) as signals:
        signals.loaded()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_every_command_has_its_recipe_loaded_before_it_works() -> None:
    for name in COMMANDS:
        assert find_spec(f"earlybert.recipes.{RECIPES.get(name, name)}") is not None, name
