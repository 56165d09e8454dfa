"""What scores of a model as it is cost."""

from __future__ import annotations

from dataclasses import replace

from earlybert.config.finetune import Finetune
from earlybert.recipes.finetuning.bench import SHARED_ORDER, Bench
from earlybert.recipes.finetuning.scoring import sensitivity

from ...conftest import HIDDEN, LAYERS, NEURONS


def test_the_surgeons_inverses_are_paid_for_once_at_the_end(config: Finetune) -> None:
    bench, flops = Bench.set_up(config), {}
    for batches in (2, 3):
        few = replace(bench, config=replace(config, score_batches=batches))
        flops[batches] = [each for _, each in sensitivity(few, bench.theta_0(), "surgeon", 0, SHARED_ORDER)[1]]
    inverses = sum(2 * width**3 + 2 * HIDDEN * width**2 for width in (HIDDEN, NEURONS))  # and the outputs' energy
    assert flops[2][0] == flops[3][0]
    assert flops[2][1] - flops[3][1] == LAYERS * inverses
