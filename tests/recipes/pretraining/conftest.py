"""A small run of pre-training."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from earlybert.config.pretrain import Pretrain

SEARCH, FIRST, SECOND = 6, 12, 4
"""Steps of the search, and of a ticket in both phases: 80 % of 15 and 5."""


@pytest.fixture
def flags(corpus_folder: Path) -> list[str]:
    parts = [
        {"corpus": corpus_folder, "device": "cpu", "precision": "no"},
        {"layers": 2, "hidden": 32, "attention-heads": 4, "intermediate": 64, "positions": 64},
        {"steps": 20, "second": 0.25, "length": 24, "batch": 8, "rows": 4, "lr": 2e-2},
        {"second-length": 48, "second-batch": 4, "second-rows": 4, "second-lr": 1e-2, "second-warmup": 0.3},
        {"search-steps": SEARCH, "heads": 1, "align": 8},
        {"eval-every": 8, "eval-rows": 16, "log-every": 4, "checkpoint-every": 4},
        {"profile-steps": 0},
    ]
    return [word for part in parts for name, value in part.items() for word in (f"--{name}", str(value))]


def config_of(folder: Path) -> Pretrain:
    return Pretrain(**yaml.safe_load((folder / "config.yaml").read_text()))
