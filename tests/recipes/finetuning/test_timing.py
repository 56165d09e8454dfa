"""Steps timed in turns."""

from __future__ import annotations

import time
from typing import Any

import torch

from earlybert.recipes.finetuning.timing import in_turns
from earlybert.train.step import EagerStep

from ...conftest import tiny_batch, tiny_model


class SlowAtFirst(EagerStep):
    calls = 0

    def __call__(self, batches: Any) -> Any:
        self.calls += 1
        time.sleep(0.3 if self.calls <= 2 else 0)  # one pass over two batches
        return super().__call__(batches)


def test_the_first_pass_does_not_count() -> None:
    model = tiny_model()
    step = SlowAtFirst(model, torch.optim.SGD(model.parameters(), lr=0.0))
    times = in_turns({"one": step}, [[tiny_batch(seed=0)], [tiny_batch(seed=1)]], passes=3)["one"]
    assert step.calls == 2 * (1 + 3)
    assert len(times) == 3
    assert max(times) < 0.3
