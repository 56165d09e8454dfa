"""The command line: parses, calls a recipe, prints. `earlybert COMMAND --help` lists every setting."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from .config import PARTS, BadSetting, Drawing, Finetune, Preparation, Ticketing

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

COMMANDS = {
    "finetune": "search, draw and train in one go",
    "search": "stage 1: find out which heads and neurons matter",
    "draw": "stage 2: draw a ticket from the scores of a run",
    "train": "stage 3: train the ticket of a run",
    "evaluate": "score the trained model of a run on its validation data",
    "prepare": "turn text files into token shards for pre-training",
}
BAD_INPUT = 2
"""Exit code when the input cannot be used; nothing was computed."""
PARTS_OF = {"draw": (Drawing,), "train": (Ticketing,), "evaluate": (), "prepare": (Preparation,)}
"""Which settings a command takes, where it takes not all those of a fine-tuning."""
FROM_YAML, FROM_RUN = ("finetune", "search"), ("draw", "train", "evaluate")


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    arguments = _underscored(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    command = arguments.pop(0)
    if command == "--version":
        from . import __version__

        print(__version__)
        return 0
    if command not in COMMANDS:
        return _refuse(f"unknown command {command!r}; there are {', '.join(COMMANDS)}.")
    if "-h" in arguments or "--help" in arguments:
        print(_plain(_parser(command).format_help()))
        return 0
    try:
        return _parse_and_run(command, arguments)
    except BadSetting as error:
        return _refuse(str(error))
    except KeyboardInterrupt as stop:
        print(f"earlybert: stopped{f'; to go on: {stop}' if stop.args else ''}.", file=sys.stderr)
        return 130


def _parse_and_run(command: str, arguments: list[str]) -> int:
    from jsonargparse import ArgumentError

    try:
        # Only what was said: what was not is the saved run's, or the default.
        given = _parser(command).parse_args(_config_first(arguments), defaults=False).as_dict()
    except ArgumentError as error:
        return _refuse(_one_line(str(error)))
    given.pop("config", None)
    if command == "prepare":
        return _prepare(given)
    options = {name: given.pop(name, None) for name in ("output", "resume", "compare", "run", "into")}
    settings = {name: value for name, value in given.items() if value is not None}
    config = Finetune(**settings) if command in FROM_YAML else None  # out of range: said before torch is loaded

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from torch import OutOfMemoryError

    from .anatomy import Refused
    from .recipes import finetune as recipe
    from .ticket import CutMismatch
    from .train import Diverged

    try:
        if config is not None:
            start = recipe.start(settings, output=options["output"], resume=bool(options["resume"]))
            if command == "finetune":
                recipe.finetune(start, compare=bool(options["compare"]))
            else:
                recipe.search(start)
        elif command == "evaluate":
            recipe.evaluate(options["run"])
        elif command == "draw":
            recipe.draw(options["run"], settings=settings, into=options["into"])
        else:
            recipe.train(options["run"], settings=settings)
    except (Refused, Diverged, CutMismatch) as error:
        return _refuse(str(error))
    except OutOfMemoryError:
        return _refuse("the device ran out of memory; lower --batch-size (and raise --accumulate), or --max-length.")
    return 0


def _prepare(given: dict[str, Any]) -> int:
    names = [field.name for field in fields(Preparation)]
    config = Preparation(**{name: given.pop(name) for name in names if given.get(name) is not None})
    options = {name: value for name, value in given.items() if name not in names and value is not None}

    from .anatomy import Refused
    from .recipes.prepare import prepare

    try:
        prepare(config, **options)
    except Refused as error:
        return _refuse(str(error))
    return 0


def _parser(command: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    takes = "" if command in FROM_YAML else "FILE ... " if command == "prepare" else "RUN "
    parser = ArgumentParser(
        prog=f"earlybert {command}",
        usage=f"earlybert {command} {takes}[--SETTING VALUE ...]",
        description=COMMANDS[command] + ".",
        exit_on_error=False,
        default_env=False,
    )
    if command != "evaluate":
        parser.add_argument("--config", action="config", help="YAML file with settings; flags win over it")
    if command in FROM_YAML:
        parser.add_argument("--output", type=str, help="run folder (default: runs/<data>-<date>)")
        parser.add_argument(
            "--resume", action="store_true", help="go on with the run in --output, with its own settings"
        )
        if command == "finetune":
            parser.add_argument(
                "--compare",
                action="store_true",
                help="also train the dense model, and the dense model stopped at the same cost",
            )
    elif command == "prepare":
        _add_prepare(parser)
    else:
        parser.add_argument("run", type=str, help="run folder")
    if command == "draw":
        parser.add_argument("--into", type=str, help="new run folder for this ticket, with a copy of the search")
    for part in PARTS_OF.get(command, PARTS):
        helps = _helps(part)
        group = parser.add_argument_group((part.__doc__ or "").rstrip("."))
        for field in fields(part):
            default = "the run's" if command in FROM_RUN else field.default
            kind = _field_type(part, field.name)
            group.add_argument(f"--{field.name}", type=kind, help=f"{helps[field.name]} [{default}]")
    return parser


def _add_prepare(parser: ArgumentParser) -> None:
    parser.add_argument("files", type=str, nargs="*", help="text files or JSON lines, packed as .gz or .xz or not")
    parser.add_argument("--output", type=str, help="folder for the corpus")
    parser.add_argument("--dataset", type=str, help="data set of the hub to stream, instead of files")
    parser.add_argument("--dataset_config", type=str, help="its configuration, where it has several")
    parser.add_argument("--split", type=str, help="which part of it [train]")
    parser.add_argument("--workers", type=int, help="processes that tokenise [one a core]")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished corpus in --output")


def _field_type(part: type, name: str) -> Any:
    from typing import get_type_hints

    return get_type_hints(part)[name]


def _helps(part: type) -> dict[str, str]:
    """The docstring under each field."""
    import inspect

    source = inspect.getsource(part)
    return dict(re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', source, flags=re.MULTILINE | re.DOTALL))


def _overview() -> str:
    lines = [f"  {name:<10} {help}" for name, help in COMMANDS.items()]
    return "\n".join(
        [
            "usage: earlybert COMMAND [--config FILE.yaml] [--SETTING VALUE ...]",
            "",
            "Train BERT-class transformers in a fraction of the time with early-bird lottery tickets.",
            "",
            *lines,
            "",
            "earlybert COMMAND --help lists the settings of a command.",
        ]
    )


def _underscored(arguments: list[str]) -> list[str]:
    """`--data-dir` and `--data_dir` are the same flag."""
    return [re.sub(r"^--[\w-]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), word) for word in arguments]


def _config_first(arguments: list[str]) -> list[str]:
    """Flags win over YAML wherever they stand: the parser lets what comes later win."""
    first: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--config":
            first += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            (first if word.startswith("--config=") else rest).append(word)
    return first + rest


def _plain(help: str) -> str:
    """Without the types and defaults that the parser adds: choices and defaults are in the text."""
    return _with_dashes(re.sub(r"\s*\((required, )?type:[^)]*(\[[^\]]*\])?[^)]*\)", "", help))


def _with_dashes(text: str) -> str:
    return re.sub(r"--\w+", lambda flag: flag[0].replace("_", "-"), text)


def _one_line(message: str) -> str:
    """Jsonargparse explains at length, over several lines."""
    message = re.sub(r"<class '(\w+)'>", r"\1", " ".join(message.split()))
    return _with_dashes(re.sub(r'Parser key "(\w+)":', r"--\1:", message))


def _refuse(sentence: str) -> int:
    print(f"earlybert: {sentence}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
