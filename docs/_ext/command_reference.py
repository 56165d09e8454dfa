"""The command-line reference, from the program's own parsers: what `--help` says, as Markdown."""

from __future__ import annotations

import re
from argparse import Action, HelpFormatter
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from earlybert.cli import COMMANDS
from earlybert.cli.commands import Command
from earlybert.cli.parser import parser_of

LEFT_OUT = {"help", "print_config"}
"""Arguments that the parser adds to every command."""


@dataclass(frozen=True)
class Group:
    """Arguments under one heading of a command's help."""

    title: str
    arguments: tuple[tuple[str, str], ...]
    """How each is said, and what it means."""

    @property
    def name(self) -> str:
        """Of its place on the page."""
        return "settings-" + re.sub(r"\W+", "-", self.title.lower()).strip("-")


def groups(name: str, command: Command) -> tuple[str, list[Group]]:
    """The usage of a command, and its arguments as its parser has them."""
    parser = parser_of(name, command)
    formatter = HelpFormatter(parser.prog)
    found = [
        Group(
            "" if group.title in ("positional arguments", "options") else str(group.title),
            tuple(_argument(formatter, action) for action in group._group_actions if action.dest not in LEFT_OUT),
        )
        for group in parser._action_groups
    ]
    return str(parser.usage), [group for group in found if group.arguments]


def reference(commands: Mapping[str, Command] = COMMANDS) -> str:
    """Markdown: a section a command, and after them the settings that several commands take."""
    helps = {name: groups(name, command) for name, command in commands.items()}
    times = Counter(group for _, found in helps.values() for group in found if group.title)
    lines: list[str] = []
    for name, (usage, found) in helps.items():
        lines += [f"## earlybert {name}", "", _sentence(commands[name].about), "", "```text", usage, "```", ""]
        lines += _program(name)
        shared = [group for group in found if times[group] > 1]
        for group in found:
            if group not in shared:
                lines += [*([f"**{_text(group.title)}**", ""] if group.title else []), *_options(group)]
        if shared:
            links = "\n".join(f"- [{_text(group.title)}](#{group.name})" for group in shared)
            lines += ["And the settings of", "", links, ""]
    lines += ["## Settings of several commands", ""]
    for group in (group for group, count in times.items() if count > 1):
        takers = [f"`{name}`" for name, (_, found) in helps.items() if group in found]
        lines += [f"({group.name})=", f"### {_text(group.title)}", "", f"Taken by {', '.join(takers)}.", ""]
        lines += [*_program(group.name), *_options(group)]
    return "\n".join(lines)


def _argument(formatter: HelpFormatter, action: Action) -> tuple[str, str]:
    said = formatter._format_action_invocation(action).split(", --")[0]  # without the parser's own --name+
    help = re.sub(r" \[None\]$", "", str(action.help or ""))
    if not action.option_strings:  # the first word of its help is what the usage shows
        said, help = help.split(": ", 1) if ": " in help else (said.upper(), help)
    return _dashed(said), _dashed(help)


def _program(name: str) -> list[str]:
    return ["```{program} " + name, "```", ""]


def _options(group: Group) -> list[str]:
    lines: list[str] = []
    for said, help in group.arguments:
        lines += ["```{option} " + said, _sentence(_text(help)), "```", ""]
    return lines


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "]")) else ".")


def _dashed(text: str) -> str:
    return re.sub(r"--\w+", lambda flag: flag[0].replace("_", "-"), " ".join(text.split()))


def _text(plain: str) -> str:
    """Help is plain text but for `code` and the names of pages."""
    flagged = re.sub(r"(?<![`\w-])--[a-z][\w-]*", r"`\g<0>`", plain)
    escaped = re.sub(r"([<>*_\[\]#|\\])(?=[^`]*(?:`[^`]*`[^`]*)*$)", r"\\\1", flagged)
    return re.sub(
        r"docs/(\w+\.md)|benchmarks/README\.md", lambda page: f"[{page[0]}]({page[1] or 'benchmarks.md'})", escaped
    )


class Commands(SphinxDirective):
    """Stands for the whole reference."""

    def run(self) -> list[nodes.Node]:
        """Parse it where the directive stands."""
        return self.parse_text_to_nodes(reference(), allow_section_headings=True)


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
