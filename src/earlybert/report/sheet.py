"""A table that is printed, and written as Markdown, from the same cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Sheet:
    """Text in rows and columns; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)
    """Sentences beneath."""
    words: bool = False
    """Whether the cells are words and not numbers, which stand to the right."""

    def rich(self) -> Table:
        """For a terminal."""
        caption = escape("\n".join(self.notes))
        table = Table(title=escape(self.title), title_justify="left", caption=caption, caption_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(
                escape(column),
                justify="left" if self.words or number == 0 else "right",
                overflow="fold",
                no_wrap=number == 0 and not self.words,
            )
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        """For a file."""
        lines = [
            f"### {self.title}",
            "",
            _line(self.columns),
            _line(["---"] + ["---" if self.words else "---:"] * (len(self.columns) - 1)),
        ]
        lines += [_line(row) for row in self.rows]
        notes = [line for note in self.notes for line in ("", note)]
        return "\n".join([*lines, *notes, ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
