"""Every configuration that comes with the package is one that its command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from earlybert.config.finetune import Finetune
from earlybert.config.pretrain import Pretrain
from earlybert.config.values import typed
from earlybert.recipes.comparison.comparison import Comparison
from earlybert.recipes.reproduce.experiment import SCALES, Scale
from earlybert.recipes.reproduce.studies import pretraining

CONFIGS = Path(__file__).parents[1] / "configs"
TOP = {file.name: yaml.safe_load(file.read_text()) for file in CONFIGS.glob("*.yaml")}
PAPER = {f"paper/{file.name}": yaml.safe_load(file.read_text()) for file in (CONFIGS / "paper").glob("*.yaml")}
FILES = sorted(TOP)  # the paper's fine-tuning tables: recipes/reproduce
EVERY = TOP | PAPER
STUDIES = sorted(name for name, given in PAPER.items() if "base" in given)


@pytest.mark.parametrize("name", FILES)
def test_it_parses_and_is_in_range(name: str) -> None:
    given: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    if name.startswith("pretrain"):
        Pretrain(**given)
        return
    if "methods" not in given:
        Finetune(**typed(given, Finetune))
        return
    comparison = Comparison.of(given)
    methods = [comparison.method_of(row) for row in comparison.methods]
    assert "dense" in methods
    assert {"dense_same_flops", "dense_same_time"} & set(methods)  # every comparison has the rival


def test_there_are_some() -> None:
    assert {"demo.yaml", "compare_glue.yaml", "pretrain_small.yaml"} <= set(FILES)


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("scale", SCALES)
def test_a_study_is_in_range_at_both_scales(name: str, scale: Scale) -> None:
    study = pretraining(Path(name).stem, scale, {}).study
    assert study.cells()
    if study.finetuning is not None and len(study.finetuning.methods) > 1:
        methods = {study.finetuning.method_of(row) for row in study.finetuning.methods}
        assert {"dense", "dense_same_flops"} <= methods  # every comparison has the rival


def test_tables_of_pretraining_share_their_runs() -> None:
    def runs(name: str, scale: Scale) -> set[str]:
        return {cell.name for cell in pretraining(Path(name).stem, scale, {}).study.cells()}

    for scale in SCALES:
        table4, figure4, table9 = (runs(name, scale) for name in ("table4.yaml", "figure4.yaml", "table9.yaml"))
        whole, ticket = (
            {name for name in of if name.startswith("pretrain/")} for of in (figure4 & table9, table4 & table9)
        )
        assert len(whole) == 4  # dense at 100, 80, 60 and 40 %
        assert len(ticket) == 3  # dense, dense at 80 %, the ticket
        tasks = len(EVERY["paper/pretraining.yaml"][scale]["tasks"])
        assert len({name for name in figure4 & table4 if name.startswith("finetune/")}) == 2 * tasks


def test_table_4_at_the_paper_s_scale_is_the_paper_s_setting() -> None:
    study = pretraining("table4", "paper", {}).study
    for row, file in (("EarlyBERT", "pretrain_base.yaml"), ("EarlyBERT large", "pretrain_large.yaml")):
        assert Pretrain(**study.settings_of(row, 42)) == Pretrain(**EVERY[file])
