"""Arguments in, help and error messages out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints

from ..config.checks import nearest, shown
from ..config.values import in_words
from .commands import LOG, Command

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

NO_SETTINGS = "--config: the file is no YAML of settings, which has lines of NAME: VALUE"


def parser_of(name: str, command: Command) -> ArgumentParser:
    """The parser of one command."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    words = (
        ["RUN"] if command.on_run else [option.help.split(":")[0] for option in command.options if option.positional]
    )
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"earlybert {name}",
        usage=" ".join(["earlybert", name, *words, "[--SETTING VALUE ...]"]),
        description=command.about + ".",
        exit_on_error=False,
        default_env=False,
    )
    if command.on_run:
        parser.add_argument("run", type=str, help="run folder")
    if command.yaml:
        parser.add_argument("--config", action="config", help="YAML file with settings; flags win over it")
    for option in (*command.options, LOG):
        if option.positional:
            parser.add_argument(option.name, type=option.type, nargs=option.count, help=option.help)
        elif option.flag:
            parser.add_argument(f"--{option.name}", action="store_true", help=option.help)
        else:
            parser.add_argument(f"--{option.name}", type=option.type, help=option.help)
    for part in command.parts:
        helps, hints = _helps(part), get_type_hints(part)
        group = parser.add_argument_group((part.__doc__ or "").rstrip("."))
        for field in fields(part):
            default = "the run's" if command.on_run else field.default
            kind = hints[field.name]
            bare: Any = {"nargs": "?", "const": True} if kind is bool else {}  # --offline is --offline true
            group.add_argument(f"--{field.name}", type=kind, help=f"{helps[field.name]} [{default}]", **bare)
    return parser


def overview(commands: Mapping[str, Command]) -> str:
    """What `earlybert --help` says."""
    lines = [f"  {name:<10} {command.about}" for name, command in commands.items()]
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


def underscored(arguments: list[str]) -> list[str]:
    """`--data-dir` and `--data_dir` are the same flag."""
    return [re.sub(r"^--[\w-]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), word) for word in arguments]


def config_first(arguments: list[str]) -> list[str]:
    """Flags win over YAML wherever they stand: the parser lets what comes later win."""
    first, rest = _apart(arguments)
    return first + rest


def plain(help: str) -> str:
    """Without the types and defaults that the parser adds: choices and defaults are in the text."""
    return _with_dashes(re.sub(r"\s*\((required, )?type:[^)]*(\[[^\]]*\])?[^)]*\)", "", help))


def one_line(error: Exception, name: str, command: Command, arguments: list[str]) -> str:
    """What the parser says, which explains at length, over several lines, in its own terms, and quotes a whole file.

    Args:
        error: What it raised.
        name: Of the command.
        command: That command.
        arguments: What was said behind it, flags with underscores.
    """
    message = " ".join(str(error).split())
    if isinstance(error, (ValueError, RecursionError)) or message.startswith("Unexpected config:"):
        return f"{NO_SETTINGS}."  # what the parser of YAML raises, and what is no mapping
    types, (first, rest) = _types(command), _apart(arguments)
    files = " or ".join(word.removeprefix("--config=") for word in first if word != "--config")
    found = re.match(r'Parser key "(\w+)": .*(?:Got|Given) value:(.*)$', message)
    if found and found[1] in types:
        key, value = found[1], found[2].strip()
        in_file = files and not re.search(rf"--{key}[= ]\S*{re.escape(value)}", " ".join(rest))
        where = f"{files}: {key}" if in_file else _with_dashes(f"--{key}")
        return f"{where} must be {in_words(types[key])}, got {shown(value)}."
    if found := re.match(r"Option '(\w+)[^']*' is not accepted", message):
        return f"{files}: there is no setting {found[1]!r}; {_meant(found[1], name, types)}"
    if found := re.match(r"unrecognized arguments: --(\w+)", message):
        return _with_dashes(f"there is no setting --{found[1]}; {_meant(found[1], name, types, '--')}")
    if found := re.match(r"argument (--\w+): expected one argument", message):
        return _with_dashes(f"{found[1]} needs a value.")
    message = re.sub(r"^Problems parsing config: (.*?)\.?$", rf"{NO_SETTINGS} (\1).", message)
    return _with_dashes(re.sub(r'Parser key "(\w+)":', r"--\1:", message))


def _apart(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Those that name YAML files, and the others."""
    first: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--config":
            first += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            (first if word.startswith("--config=") else rest).append(word)
    return first, rest


def _types(command: Command) -> dict[str, Any]:
    """What each of its options and settings is, by name."""
    hints = {field.name: get_type_hints(part)[field.name] for part in command.parts for field in fields(part)}
    return {**{option.name: option.type for option in (*command.options, LOG) if not option.positional}, **hints}


def _meant(wrong: str, name: str, types: Mapping[str, Any], dashes: str = "") -> str:
    """The setting that was meant, as a question; or where they are listed."""
    names = [f"{dashes}{each}" for each in types]
    return nearest(f"{dashes}{wrong}", names, most=1, cutoff=0.7) or f"earlybert {name} --help lists them."


def _helps(part: type) -> dict[str, str]:
    """The docstring under each field, inherited ones included."""
    sources = [inspect.getsource(base) for base in reversed(part.__mro__) if base is not object]
    pattern = re.compile(r'^    (\w+): [^\n]*\n    """(.*?)"""', flags=re.MULTILINE | re.DOTALL)
    return dict(found for source in sources for found in pattern.findall(source))


def _with_dashes(text: str) -> str:
    return re.sub(r"--\w+", lambda flag: flag[0].replace("_", "-"), text)
