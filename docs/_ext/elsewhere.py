"""Sections of Markdown files outside this folder, shown on a page of the site instead of written again.

    ```{elsewhere} ../README.md
    Compare
    Pre-train your own
    ```

shows those sections; a line `(beginning)` is what stands before the first of them, without the title, and no line at
all is the whole file. Relative links are turned, so that they lead where they lead in the file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

BEGINNING = "(beginning)"
SHOWN = {"README.md": "quickstart.md", "benchmarks/README.md": "benchmarks.md"}
"""Files outside, and the page that shows them: a link to the one is a link to the other."""
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")


def sections(text: str) -> dict[str, str]:
    """The second-level sections of a Markdown file by their heading, in order; code is not looked into."""
    found: dict[str, list[str]] = {BEGINNING: []}
    name, fenced = BEGINNING, False
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if not fenced and line.startswith("# "):
            continue
        if not fenced and line.startswith("## "):
            name = line[3:].strip()
            found[name] = []
        found[name].append(line)
    return {name: "".join(lines) for name, lines in found.items()}


def turned(text: str, file: Path, page: Path, root: Path) -> str:
    """`text` of `file` with its relative links made relative to the folder of `page`."""

    def turn(found: re.Match[str]) -> str:
        target = os.path.normpath(file.parent / found[2])
        where = os.path.relpath(target, page.parent)
        if where.startswith("..") and where.endswith(".md"):  # a file to fetch, not a page
            where = f"path:{where}"
        return found[1] + SHOWN.get(os.path.relpath(target, root), where)

    return LINK.sub(turn, text)


class Elsewhere(SphinxDirective):
    """The directive of the module's docstring."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Parse the sections where the directive stands."""
        source = Path(self.env.srcdir)
        page = Path(self.env.doc2path(self.env.docname))
        file = Path(os.path.normpath(page.parent / self.arguments[0]))
        self.env.note_dependency(str(file))
        found = sections(file.read_text(encoding="utf-8"))
        wanted = [line.strip() for line in self.content if line.strip()] or list(found)
        for name in wanted:
            if name not in found:
                raise self.error(f"{self.arguments[0]} has no section {name!r}; it has {', '.join(found)}.")
        text = turned("\n".join(found[name] for name in wanted), file, page, source.parent)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Any) -> dict[str, bool]:
    """Register the directive, and what is done to every page as it is read."""
    app.add_directive("elsewhere", Elsewhere)
    app.connect("source-read", _links_to_shown_files)
    app.connect("source-read", _without_absent_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _links_to_shown_files(app: Any, docname: str, content: list[str]) -> None:
    source = Path(app.srcdir)
    page = Path(app.env.doc2path(docname))

    def turn(found: re.Match[str]) -> str:
        target = os.path.relpath(os.path.normpath(page.parent / found[2]), source.parent)
        return found[1] + (os.path.relpath(source / SHOWN[target], page.parent) if target in SHOWN else found[2])

    content[0] = LINK.sub(turn, content[0])


def _without_absent_pages(app: Any, docname: str, content: list[str]) -> None:
    """A line `reproduction*` in a toctree is for a page that need not be there; Sphinx warns when it is not."""
    folder = Path(app.env.doc2path(docname)).parent
    content[0] = re.sub(
        r"^(\w+\*)\n", lambda found: found[0] * any(folder.glob(f"{found[1]}.md")), content[0], flags=re.MULTILINE
    )
