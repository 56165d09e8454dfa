"""The command line: parses, calls a recipe, prints. `earlybert COMMAND --help` lists every setting.

What a command shows (`--log`) and what its exit code means is in docs/live.md.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any, get_args

from ..config.checks import BadSetting, named, sentence
from ..config.finetune import LogMode
from ..config.recipe import SET_BY_ONE
from .commands import COMMANDS
from .parser import config_first, one_line, overview, parser_of, plain, underscored
from .signals import CODES, Signals
from .unread import outlive_reader

__all__ = ["BAD_INPUT", "COMMANDS", "DIVERGED", "INTERRUPTED", "TERMINATED", "main"]

LOG = "EARLYBERT_LOG"
"""The environment variable that stands for `--log` where it is not given."""
BAD_INPUT = 2
"""Exit code of everything that is refused or given up with a sentence, but what has a code of its own."""
DIVERGED = 3
"""Exit code when the loss or the weights are not finite any more."""
INTERRUPTED, TERMINATED = CODES[signal.SIGINT], CODES[signal.SIGTERM]
"""Exit codes after SIGINT and SIGTERM."""


LESS = {
    "finetune": "lower --batch-size (and raise --accumulate), or --max-length",
    "pretrain": "lower --rows, which changes no result, or --length",
    "prepare": "lower --workers",
}
"""What takes less memory."""
RECIPES = {
    **dict.fromkeys(("search", "train", "evaluate"), "finetune"),
    "reproduce": "reproduce.run",
    "ticket": "tickets",
}
"""Modules of `recipes` that commands call, where they are called otherwise."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    with Signals(at_once=argv is None) as signals:
        if argv is None:
            outlive_reader()
        return _main(argv, signals)


def _main(argv: list[str] | None, signals: Signals) -> int:
    arguments = underscored(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(COMMANDS))
        return 0
    name = arguments.pop(0)
    if name == "--version":
        from .. import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        return _refuse(f"unknown command {name!r}; there are {', '.join(COMMANDS)}.")
    if "-h" in arguments or "--help" in arguments:
        print(plain(parser_of(name, COMMANDS[name]).format_help()))
        return 0
    try:
        return _parse_and_run(name, arguments, signals)
    except BadSetting as error:
        return _refuse(str(error))
    except KeyboardInterrupt as stop:
        from ..train.interrupt import Terminated

        return _stopped(str(stop) or None, TERMINATED if isinstance(stop, Terminated) else INTERRUPTED)


def _parse_and_run(name: str, arguments: list[str], signals: Signals) -> int:
    from jsonargparse import ArgumentError

    command = COMMANDS[name]
    try:
        # Only what was said: what was not is the saved run's, or the default.
        parsed = parser_of(name, command).parse_args(config_first(arguments), defaults=False).as_dict()
    except (ArgumentError, ValueError, RecursionError) as error:
        return _refuse(one_line(error, name, command, arguments))
    given: dict[str, Any] = {
        key: value for key, value in parsed.items() if (value is not None or key in SET_BY_ONE) and key != "config"
    }
    from ..recipes.display import display

    mode: Any = given.pop("log", None) or named(os.environ.get(LOG, "auto"), get_args(LogMode), LOG)
    display.mode = mode
    signals.json = display.mode == "json"
    command.check(given)  # out of range: said before torch is loaded

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from .. import __version__

    import_module(f"..recipes.{RECIPES.get(name, name)}", __name__)
    signals.loaded()
    if _first():
        display.emit("start", command=name, version=__version__, settings=given)
    try:
        result = command.run(given)
    except Exception as error:
        if signals.came is not None:  # a library has made this of it
            return _stopped(None, signals.came)
        return _failed(name, error)
    display.emit("done", command=name, **(result or {}))
    return 0


def _failed(name: str, error: Exception) -> int:
    """Its exit code, where it is told in a sentence; else it is raised again."""
    from ..anatomy import Refused
    from ..ticket import CutMismatch
    from ..ticket.memory import out_of_memory
    from ..train import Diverged
    from ..train.rehearsal import Unusable

    if isinstance(error, Diverged):
        return _refuse(str(error), DIVERGED)
    if isinstance(error, (Refused, CutMismatch)):
        return _refuse(str(error))
    behind: BaseException | None = error
    while behind is not None:  # a device that does nothing more fails again wherever something is put back
        if isinstance(behind, Unusable):
            return _refuse(str(behind))
        behind = behind.__context__
    if isinstance(error, (RuntimeError, MemoryError)) and out_of_memory(error):
        return _refuse(f"the memory ran out; {LESS.get(name, LESS['finetune'])}.")
    raise error


def _refuse(text: str, code: int = BAD_INPUT) -> int:
    said = sentence(text)
    return _ended("failed", code, f"earlybert: {said}", message=said)


def _first() -> bool:
    """Whether this is the process that speaks for all of a job, as far as the launcher's environment tells."""
    return (os.environ.get("WORLD_SIZE") or "1") == "1" or (os.environ.get("RANK") or "0") == "0"


def _stopped(command: str | None, code: int) -> int:
    if not _first():  # all of them stop, with one command to go on
        return code
    return _ended("stopped", code, f"earlybert: stopped{f'; to go on: {command}' if command else ''}.", resume=command)


def _ended(event: str, code: int, said: str, **about: str | None) -> int:
    """Say it to a person on standard error, and to a program that reads JSON lines."""
    from ..recipes.display import display

    print(said, file=sys.stderr)
    display.emit(event, code=code, **about)
    return code
