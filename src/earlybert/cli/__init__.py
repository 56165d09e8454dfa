"""The command line: parses, calls a recipe, prints. `earlybert COMMAND --help` lists every setting."""

from __future__ import annotations

import os
import sys

from ..config import BadSetting
from .commands import COMMANDS
from .parser import config_first, one_line, overview, parser_of, plain, underscored

__all__ = ["BAD_INPUT", "COMMANDS", "main"]

BAD_INPUT = 2
"""Exit code when the input cannot be used; nothing was computed."""


LESS = {
    "finetune": "lower --batch-size (and raise --accumulate), or --max-length",
    "pretrain": "lower --rows, which changes no result, or --length",
    "prepare": "lower --workers",
}
"""What takes less memory."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code."""
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
        return _parse_and_run(name, arguments)
    except BadSetting as error:
        return _refuse(str(error))
    except KeyboardInterrupt as stop:
        print(f"earlybert: stopped{f'; to go on: {stop}' if stop.args else ''}.", file=sys.stderr)
        return 130


def _parse_and_run(name: str, arguments: list[str]) -> int:
    from jsonargparse import ArgumentError

    command = COMMANDS[name]
    try:
        # Only what was said: what was not is the saved run's, or the default.
        parsed = parser_of(name, command).parse_args(config_first(arguments), defaults=False).as_dict()
    except ArgumentError as error:
        return _refuse(one_line(str(error)))
    given = {key: value for key, value in parsed.items() if value is not None and key != "config"}
    command.check(given)  # out of range: said before torch is loaded

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from ..anatomy import Refused
    from ..ticket import CutMismatch
    from ..ticket.memory import out_of_memory
    from ..train import Diverged
    from ..train.interrupt import terminable

    try:
        with terminable():
            command.run(given)
    except (Refused, Diverged, CutMismatch) as error:
        return _refuse(str(error))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return _refuse(f"the memory ran out; {LESS.get(name, LESS['finetune'])}.")
    return 0


def _refuse(sentence: str) -> int:
    print(f"earlybert: {sentence}", file=sys.stderr)
    return BAD_INPUT
