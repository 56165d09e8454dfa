"""Print the lower bounds of `pyproject.toml` as exact versions, for `pip install --constraint`.

python supply/lowest.py [PACKAGE ...]      # those to leave out
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(requirements: list[str]) -> dict[str, str]:
    """Lower bound of each requirement, by name.

    Raises:
        ValueError: A requirement has none.
    """
    found: dict[str, str] = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)(?:,.*)?", requirement)
        if match is None:
            raise ValueError(f"{requirement} has no lower bound")
        found[match[1]] = match[2]
    return found


if __name__ == "__main__":
    bounds = lowest(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"])
    print("\n".join(f"{name}=={version}" for name, version in bounds.items() if name not in sys.argv[1:]))
