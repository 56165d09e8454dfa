"""Every configuration that comes with the package is one that its command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from earlybert.config import Finetune, typed
from earlybert.config_pretrain import Pretrain
from earlybert.recipes.comparison import Comparison

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(file.name for file in CONFIGS.glob("*.yaml"))  # those of the paper: recipes/reproduce


@pytest.mark.parametrize("name", FILES)
def test_it_parses_and_is_in_range(name: str) -> None:
    given: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    if name.startswith("pretrain"):
        Pretrain(**given)
        return
    if "methods" not in given:
        Finetune(**typed(given))
        return
    comparison = Comparison.of(given)
    methods = [comparison.method_of(row) for row in comparison.methods]
    assert "dense" in methods
    assert {"dense_same_flops", "dense_same_time"} & set(methods)  # every comparison has the rival


def test_there_are_some() -> None:
    assert {"demo.yaml", "compare_glue.yaml", "pretrain_small.yaml"} <= set(FILES)
