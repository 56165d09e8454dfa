"""The graphed step on a GPU against the eager one; skipped where there is none."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch

from earlybert import Gates
from earlybert.train import engine
from earlybert.train.fast import RaggedStep
from earlybert.train.optimizer import adamw
from earlybert.train.step import EagerStep
from tests.conftest import tiny_batch
from tests.train.cuda.conftest import graphed
from tests.train.test_fast import KINDS, batch_of, build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def losses(step: EagerStep, kind: str, steps: int = 20) -> list[float]:
    found = []
    for seed in range(steps):
        sizes = [1, 30, 7, 512, 20, 3] if seed < steps - 1 else [9, 4]  # a last short batch
        found.append(step(step.prepare([batch_of(sizes, kind, seed, step.model.config.pad_token_id or 0)])))
    return torch.stack(found).tolist()


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_twenty_steps_within_bf16(family: str, kind: str, cut: bool) -> None:
    sizes = {"max_position_embeddings": 520}
    model = build(family, kind, cut, **sizes).cuda()
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    results = []
    for make in (EagerStep, *(partial(plain, precision="bf16") for plain in (EagerStep, RaggedStep)), graphed):
        mine = copy.deepcopy(model)
        step = make(mine, adamw(mine, lr=1e-3, weight_decay=0.01))
        results.append((losses(step, kind), torch.cat([p.detach().flatten() for p in mine.parameters()])))
        if isinstance(step, RaggedStep):
            assert step.kernel == "varlen"
    (exact, exact_end), (_, half_end), *quick = results
    moved = (exact_end - start).norm()
    for fast, fast_end in quick:
        assert fast == pytest.approx(exact, abs=0.02)
        # as far from fp32 as the eager bf16 step is, or little more
        assert (fast_end - exact_end).norm() / moved < 2 * (half_end - exact_end).norm() / moved + 0.02


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_step_passes_its_rehearsal(kind: str, search: bool, caplog: pytest.LogCaptureFixture) -> None:
    """With dropout; and it is as fast as one that was not rehearsed: its graphs are made anew."""
    model = build("bert", kind, False, hidden_dropout_prob=0.1).cuda()
    gates = Gates(model).attach() if search else None
    sample = [batch_of([5, 30, 1, 8], kind, 0)]
    settings = {"precision": "bf16", "gates": gates, "l1": (1e-4, 1e-4)}
    step = engine.build("fast", model, adamw(model, lr=5e-5, gates=gates), sample=lambda: sample, **settings)
    assert type(step).__name__ == "GraphedStep"
    assert not caplog.messages
    for _ in range(3):
        step(step.prepare(sample))
    assert len(step.graphs) == 1


def test_a_search_moves_the_coefficients_alike() -> None:
    model = build("bert", "classification", False).cuda()
    rows = []
    for make in (EagerStep, graphed):
        mine = copy.deepcopy(model)
        with Gates(mine) as gates:
            step = make(mine, adamw(mine, lr=1e-3, gates=gates), gates=gates, l1=(1e-2, 1e-2))
            for seed in range(10):
                step(step.prepare([batch_of([5, 9, 2, 14], "classification", seed)]))
            rows.append(gates.row())
    assert (rows[0] - rows[1]).abs().gt(1e-3).float().mean() < 0.05


def test_graphs_are_bounded_shared_and_survive_a_failed_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("bert", "classification", False, max_position_embeddings=520).cuda()
    step = graphed(model, adamw(model, lr=1e-4), graphs=2)
    for _ in range(3):
        for tokens in (100, 200, 300, 400):
            step(step.prepare([batch_of([tokens, 5], "classification", 0)]))
    assert len(step.graphs) == 2
    from earlybert.train.cuda import graphed as module

    step_of = module.FusedAdamW.step

    def fails(*arguments: Any) -> None:
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()  # not allowed then
        step_of(*arguments)

    other = graphed(model, adamw(model, lr=1e-4))
    monkeypatch.setattr(module.FusedAdamW, "step", fails)
    for _ in range(3):  # the second would be captured, the third goes on without graphs
        assert torch.isfinite(other(other.prepare([tiny_batch()])))
    assert other.graphs.limit == 0


def test_a_search_step_and_several_micro_batches_take_graphs() -> None:
    """Like the eager step in bf16: coefficients away from 1, two micro-batches of one size and of two."""
    model = build("bert", "classification", False, max_position_embeddings=520).cuda()
    ends = []
    for make in (EagerStep, lambda *a, **k: EagerStep(*a, precision="bf16", **k), graphed):
        mine = copy.deepcopy(model)
        with Gates(mine) as gates:
            for parameter in gates.parameters():
                parameter.data.normal_(1.0, 0.7, generator=torch.Generator("cuda").manual_seed(1))
            step = make(mine, adamw(mine, lr=1e-3, gates=gates), gates=gates, l1=(1e-2, 2e-2))
            for seed in range(8):
                sizes = ([5, 9, 2, 14], [5, 9, 2, 14] if seed % 2 else [200, 3, 9, 9])
                step(step.prepare([batch_of(list(size), "classification", seed) for size in sizes]))
            ends.append(torch.cat([p.detach().flatten() for p in [*mine.parameters(), *gates.parameters()]]))
    assert len(step.graphs) == 3  # one of them is the update
    exact, half, fast = ends
    assert (fast - exact).norm() < 2 * (half - exact).norm()
