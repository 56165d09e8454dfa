"""A small comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

METHODS = {
    "dense": None,
    "dense_same_flops": None,
    "ticket": None,
    "Ticket, uniform": {"method": "uniform"},
    "random": None,
}


@pytest.fixture
def given(flags: list[str], tmp_path: Path) -> Path:
    settings = {
        flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)
    }
    task = settings.pop("task")
    plain = {name: yaml.safe_load(value) if name not in ("precision",) else value for name, value in settings.items()}
    plain |= {"dense_epochs": 1, "epochs": 1, "search_steps": 6, "tasks": [task], "seeds": [1, 2], "methods": METHODS}
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(plain, sort_keys=False))
    return file


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "compare.json").read_text())
