"""Sections of Markdown files outside this folder, shown on a page of the site instead of written again.

    ```{elsewhere} ../README.md
    Compare
    Pre-train your own
    ```

stands for those sections, whose text takes its place before the page is parsed. A line `(beginning)` is what stands
before the first section, without the title, and no line at all is the whole file. Relative links are turned, so that
they lead where they lead in the file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError

BEGINNING = "(beginning)"
SHOWN = {"README.md": "quickstart.md", "benchmarks/README.md": "benchmarks.md"}
"""Files outside, and the page that shows them: a link to the one is a link to the other."""
BLOCK = re.compile(r"^```\{elsewhere\} (\S+)\n((?:[^`\n]+\n)*)```$", flags=re.MULTILINE)
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


def shown(text: str, page: Path, root: Path) -> tuple[str, list[Path]]:
    """`text` of `page` with sections of other files in their places, and which files those are."""
    files: list[Path] = []

    def fill(block: re.Match[str]) -> str:
        file = Path(os.path.normpath(page.parent / block[1]))
        files.append(file)
        found = sections(file.read_text(encoding="utf-8"))
        wanted = block[2].split("\n")[:-1] or list(found)
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ExtensionError(f"{page.name}: {block[1]} has no section {missing[0]!r}; it has {', '.join(found)}.")
        return turned("\n".join(found[name] for name in wanted), file, page, root)

    return BLOCK.sub(fill, text), files


def setup(app: Any) -> dict[str, bool]:
    """What is done to every page as it is read."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _read(app: Any, docname: str, content: list[str]) -> None:
    page, root = Path(app.env.doc2path(docname)), Path(app.srcdir).parent
    text = _without_absent_pages(turned(content[0], page, page, root), page.parent)
    content[0], files = shown(text, page, root)
    for file in files:
        app.env.note_dependency(str(file))


def _without_absent_pages(text: str, folder: Path) -> str:
    """A line `reproduction*` in a toctree is for a page that need not be there; Sphinx warns when it is not."""
    return re.sub(r"^(\w+\*)\n", lambda found: found[0] * any(folder.glob(f"{found[1]}.md")), text, flags=re.MULTILINE)
