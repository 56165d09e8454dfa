"""The page of all results: every claim first, then each table and figure."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...anatomy import Refused
from ...report.sheet import Sheet
from ...ticket.files import write_atomically
from .experiment import ORDER
from .record import Record

PAGE = "reproduction.md"
INTRODUCTION = """# Reproduction

    earlybert reproduce --list                        # every table and figure
    earlybert reproduce table2 --scale small --data-dir DATA
    earlybert reproduce all --scale paper --check     # what each would take on one H100

Made from the results by `earlybert reproduce`; [what the answers mean](#how-claims-are-judged).
"""
RULES = """## How claims are judged

A claim about scores compares two rows by the mean over tasks of their paired differences, with a 95 % interval over
examples and seeds. With *one seed* it is over the examples alone: training again may say otherwise. It *held* when
the whole interval is on its side, did *not hold* when the whole interval is on the other, and is *open* otherwise:
these runs cannot tell. A saving is judged by training FLOPs or by training time, search included; the second stays
open where runs shared the machine. A mask has *settled* at a step when from there on it is nearer to the last mask
than half of what chance would give; it should have by a fifth of the steps shown. It *rises later* when masks a tenth
of the steps apart differ more at the end than at their closest, by a twentieth of chance. Later (earlier) layers
*lose more* when the rank correlation of depth and neurons kept is at least 0.5 in that direction.
"""


def write_page(folder: Path, records: Path | None = None) -> Path:
    """Write `reproduction.md` of every `NAME.json` there is.

    Args:
        folder: Where the page goes.
        records: Where the results and their pictures are; the same folder when None.

    Raises:
        Refused: There are no results.
    """
    found = load(records or folder)
    if not found:
        raise Refused(f"{records or folder} holds no results of earlybert reproduce.")
    pictures = "" if records is None else f"{Path(os.path.relpath(records, folder)).as_posix()}/"
    write_atomically(folder / PAGE, page(found, pictures=pictures).encode())
    return folder / PAGE


def load(folder: Path) -> list[Record]:
    """Results in a folder, in the paper's order."""
    files = sorted(folder.glob("*.json"), key=lambda file: (_place(file.stem), file.stem))
    return [Record.load(file) for file in files]


def page(records: list[Record], *, pictures: str = "") -> str:
    """Markdown of results; links to pictures begin with `pictures`."""
    parts = [INTRODUCTION, _claims(records).markdown().replace("### ", "## ", 1), RULES]
    for record in records:
        text = record.markdown().replace("### ", "## ", 1)
        parts.append(re.sub(r"\]\(([^)/]+\.svg)\)", rf"]({pictures}\1)", text))
    return "\n".join(parts)


def _claims(records: list[Record]) -> Sheet:
    rows = [[record.title, claim.says, claim.answer, record.scale] for record in records for claim in record.claims]
    counts = {answer: sum(row[2].startswith(answer) for row in rows) for answer in ("held", "not held", "open")}
    note = ", ".join(f"{count} {answer}" for answer, count in counts.items()) + f", of {len(rows)} claims."
    return Sheet("Every claim", ("where", "claim", "held?", "scale"), rows, [note], words=True)


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)
