"""Parts of a run's stages that whole runs do not show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from earlybert.config.finetune import Finetune
from earlybert.recipes.finetuning.bench import Bench
from earlybert.recipes.finetuning.plan import plan
from earlybert.recipes.finetuning.stages import _watch
from earlybert.recipes.run import Run


@pytest.mark.parametrize(
    ("warmup", "soonest", "checks"), [(0.1, 60, [60, 80, 100]), (0.3, 60, [80, 100]), (0.3, 90, [100])]
)
def test_no_mask_is_judged_while_the_rate_still_rises(
    warmup: float, soonest: int, checks: list[int], config: Finetune, tmp_path: Path
) -> None:
    """Of 240 steps 24 or 72 are within the warm-up."""
    config = replace(config, dense_epochs=10, warmup=warmup, settle_min_steps=soonest)
    watch = _watch(config, plan(Bench.set_up(config)), Run(tmp_path, config), 0)
    assert watch is not None
    assert [step for step in range(1, 101) if watch.due(step)] == checks
