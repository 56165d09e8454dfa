"""The graphed step, its kernels interpreted and no graph captured, against the eager one; and how it falls back."""

from __future__ import annotations

import copy
import re
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from earlybert import Gates
from earlybert.train import engine
from earlybert.train.cuda.graphs import Graphs
from earlybert.train.fast import RaggedStep
from earlybert.train.optimizer import adamw
from earlybert.train.step import EagerStep
from tests.conftest import tiny_model
from tests.train.cuda.conftest import DEVICE, graphed, needs_triton
from tests.train.test_fast import batch_of, build

needs_triton()
pytestmark = pytest.mark.usefixtures("quick")


def three_steps(make: Any, model: Any, *, search: bool, parts: int = 1, **settings: Any) -> tuple[list[float], Tensor]:
    """Losses, and every parameter and coefficient at the end."""
    mine = copy.deepcopy(model)
    gates = Gates(mine).attach() if search else None
    if gates is not None:  # away from 1, some below zero: everything that a coefficient scales is seen
        for parameter in gates.parameters():
            parameter.data.normal_(1.0, 0.7, generator=torch.Generator(DEVICE).manual_seed(1))
    groups = adamw(mine, lr=1e-3, weight_decay=0.01, gates=gates).param_groups
    # a larger eps: Adam would blow the rounding of a gradient near zero up to a whole step
    step = make(mine, torch.optim.AdamW(groups, eps=1e-4), gates=gates, l1=(1e-2, 2e-2), **settings)
    pad = mine.config.pad_token_id or 0
    batches = [[batch_of([1, 5], "classification", 3 * i + j, pad) for j in range(parts)] for i in range(3)]
    losses = [float(step(step.prepare(batch))) for batch in batches]
    moved = [*mine.parameters(), *(gates.parameters() if gates is not None else [])]
    return losses, torch.cat([parameter.detach().flatten() for parameter in moved])


@pytest.mark.skipif(DEVICE == "cuda", reason="attention on a GPU is in bf16")
@pytest.mark.parametrize(
    ("name", "cut", "search", "parts"),
    [("bert", True, False, 1), ("bert", False, True, 1), ("roberta", False, True, 2), ("distilbert", False, True, 1)],
)
def test_the_step_made_of_them_in_fp32(name: str, cut: bool, search: bool, parts: int) -> None:
    """Three steps like the eager ones, to rounding: dense, cut and searching, one micro-batch and several."""
    model = build(name, "classification", cut)
    exact, exact_end = three_steps(EagerStep, model, search=search, parts=parts)
    fast, fast_end = three_steps(graphed, model, search=search, parts=parts, precision="no")
    assert fast == pytest.approx(exact, abs=1e-6)
    torch.testing.assert_close(fast_end, exact_end, rtol=1e-5, atol=5e-6)


def test_the_step_made_of_them_within_bf16() -> None:
    """A search, as far from fp32 as the eager bf16 step is, or little more."""
    model = build("bert", "classification", False).to(DEVICE)
    exact, exact_end = three_steps(EagerStep, model, search=True)
    _, half_end = three_steps(EagerStep, model, search=True, precision="bf16")
    fast, fast_end = three_steps(graphed, model, search=True)
    assert fast == pytest.approx(exact, abs=0.003)
    assert (fast_end - exact_end).norm() < 2 * (half_end - exact_end).norm()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("operation not permitted when stream is capturing\nmore"), "operation not permitted when .+ing$"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "no memory for them"),
    ],
)
def test_a_capture_that_fails_goes_on_without_graphs_and_says_so(
    error: RuntimeError, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("bert", "classification", False, num_hidden_layers=1).to(DEVICE)
    results = []
    for graphs in (0, 2):
        mine = copy.deepcopy(model)
        step = graphed(mine, adamw(mine, lr=1e-3), graphs=graphs)

        def fails(*_: Any) -> None:
            raise error

        monkeypatch.setattr(step, "_capture", fails)
        batch = batch_of([1, 5], "classification", 0)
        results.append([float(step(step.prepare([batch]))) for _ in range(2)])
    assert step.graphs.limit == 0
    assert results[0] == results[1]
    assert len(caplog.messages) == 1
    assert re.search(f"CUDA graphs are off, steps will be slower: .*{said}", caplog.messages[0])


@pytest.mark.skipif(DEVICE == "cuda", reason="attention on a GPU is in bf16")
@pytest.mark.parametrize("parts", [1, 2])
def test_what_is_captured_and_replayed_is_the_same_step(parts: int, stand_ins: list[int]) -> None:
    """Graphs by size, held to a number; new data reaches them; a step of several parts, then one of one part."""
    model = build("bert", "classification", False, num_hidden_layers=1)
    ends = []
    for make in (EagerStep, lambda *a, **k: graphed(*a, graphs=3, precision="no", **k)):
        mine = copy.deepcopy(model)
        with Gates(mine) as gates:
            groups = adamw(mine, lr=1e-3, gates=gates).param_groups
            step = make(mine, torch.optim.AdamW(groups, eps=1e-4), gates=gates, l1=(1e-2, 2e-2))
            losses = []
            for seed in range(5):
                sizes = [1, 5] if seed < 4 else [3, 9]
                count = parts if seed != 3 else 1
                batches = [batch_of(sizes, "classification", 2 * seed + part) for part in range(count)]
                losses.append(float(step(step.prepare(batches))))
            ends.append((losses, torch.cat([p.detach().flatten() for p in [*mine.parameters(), *gates.parameters()]])))
    assert stand_ins[0] > 0
    assert stand_ins[1] >= 3 * parts - 1
    assert ends[1][0] == pytest.approx(ends[0][0], abs=1e-6)
    torch.testing.assert_close(ends[1][1], ends[0][1], rtol=1e-5, atol=5e-6)


@pytest.mark.skipif(DEVICE == "cuda", reason="attention on a GPU is in bf16")
@pytest.mark.parametrize("parts", [1, 2])
def test_a_pass_without_memory_beside_graphs_is_taken_again(
    parts: int, stand_ins: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Behind its backward pass, when gradients are there already: nothing of it may stay."""
    model = build("bert", "classification", False, num_hidden_layers=1)
    ends = []
    for graphs in (0, 3):
        mine = copy.deepcopy(model)
        step = graphed(mine, adamw(mine, lr=1e-3), graphs=graphs, precision="no")
        for number, sizes in enumerate([[1, 5], [1, 5], [3, 9], [3, 9]]):
            if graphs and number == 2:
                assert len(step.graphs) > 0
                fail_once(step.copies, torch.OutOfMemoryError("CUDA out of memory."))
            step(step.prepare([batch_of(sizes, "classification", 2 * number + part) for part in range(parts)]))
        ends.append(torch.cat([p.detach().flatten() for p in mine.parameters()]))
    assert torch.equal(*ends)
    assert step.graphs.limit == 0
    assert [message[:40] for message in caplog.messages] == ["CUDA graphs are off, steps will be slowe"]


@pytest.mark.skipif(DEVICE == "cuda", reason="attention on a GPU is in bf16")
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_was_broken_off_is_no_part_of_a_graph(
    parts: int, stand_ins: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("bert", "classification", False, num_hidden_layers=1)
    step = graphed(model, adamw(model, lr=1e-3), graphs=3, precision="no")
    touched: list[int] = []
    capture = Graphs.capture

    def watched(graphs: Graphs, work: Any) -> Any:
        touched.append(len(step.copies.embeddings._touched))
        return capture(graphs, work)

    monkeypatch.setattr(Graphs, "capture", watched)
    one, other = ([batch_of(sizes, "classification", part) for part in range(parts)] for sizes in ([1, 5], [3, 9]))
    if parts == 1:
        step(step.prepare(one))
    fail_once(step.copies, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        step(step.prepare(other))
    assert len(step.copies.embeddings._touched) == 1
    step(step.prepare(one))  # of two parts, the second is captured
    assert touched
    assert not any(touched)


def fail_once(copies: Any, error: BaseException) -> None:
    """The next use of the gradients, behind a backward pass, breaks off."""
    finish = copies.finish

    def fails() -> None:
        copies.finish = finish
        raise error

    copies.finish = fails


@pytest.mark.parametrize(
    ("missing", "changes", "said"),
    [
        ("triton", {}, "triton is not installed"),
        ("torch.nn.attention.varlen", {}, "torch.nn.attention.varlen is not installed; torch 2.11 or newer"),
        ("scale", {}, "this torch's varlen_attn takes no scale; torch 2.11"),
        (None, {"hidden_size": 48}, "heads of 8, 16, 24, ... 256 features, and these have 12"),
    ],
)
def test_a_gpu_that_cannot_take_the_graphed_step_takes_the_packed_one(
    missing: str | None,
    changes: dict[str, int],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build("bert", "classification", False, **changes)
    monkeypatch.setattr(engine, "_device", lambda _: torch.device("cuda"))
    if missing == "scale":  # as in torch 2.10
        older = ModuleType("torch.nn.attention.varlen")
        older.varlen_attn = lambda query, key, value, is_causal=False, return_aux=None: query  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, older.__name__, older)
    elif missing is not None:
        monkeypatch.setitem(sys.modules, missing, None)
    step = engine.build("fast", model, adamw(model, lr=1e-3), precision="bf16")
    assert type(step) is RaggedStep
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("the step runs without CUDA graphs and fused kernels: ")
    assert said in caplog.messages[0]


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has graphs")
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_in_graphs_passes_its_rehearsal(
    parts: int, stand_ins: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A search's, with dropout: it is captured, replayed, and then as new."""
    step, model = rehearsed(monkeypatch, parts)
    assert type(step).__name__ == "GraphedStep"
    assert not caplog.messages
    assert stand_ins[0] >= 2  # with dropout off, and on
    assert stand_ins[1] >= 4
    assert len(step.graphs) == 0
    batch = batch_of([1, 5], "classification", 0)
    plain = EagerStep(copy.deepcopy(model).eval(), torch.optim.SGD(model.parameters(), lr=0.0))
    model.eval()
    loss = step(step.prepare([batch]))
    assert float(loss) == pytest.approx(float(plain(plain.prepare([batch]))), abs=0.01)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has graphs")
@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        ("pack", "Packed.take", "its (loss in step|gradient of)"),  # replays compute on what was captured
        ("cuda.copies", "Copies.draw_seeds", "its dropout is the same in every step"),
        ("cuda.fused", "Fused.set_rates", "its update of the"),  # learning rates stay 0
        ("cuda.graphed", "GraphedStep._fill_addresses", "it failed: RuntimeError: no room"),
    ],
)
def test_a_step_that_fails_its_rehearsal_falls_back(
    module: str,
    name: str,
    said: str,
    stand_ins: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def nothing(*_: Any) -> None:
        if "failed" in said:
            raise RuntimeError("no room")

    monkeypatch.setattr(f"earlybert.train.{module}.{name}", nothing)
    step, _ = rehearsed(monkeypatch, 1)
    assert type(step) is RaggedStep
    assert len(caplog.messages) == 1
    assert re.search(f"the step runs without CUDA graphs and fused kernels: {said}", caplog.messages[0])
    assert torch.isfinite(step(step.prepare([batch_of([1, 5], "classification", 0)])))


def test_where_packing_is_wrong_too_the_plain_step_is_left(
    stand_ins: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("earlybert.train.fast.loss_of", lambda output: output.loss * 1.5)
    step, _ = rehearsed(monkeypatch, 1)
    assert type(step) is EagerStep
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "the step runs without CUDA graphs and fused kernels",
        "the step computes padding",
    ]
    assert all("its loss in step 1 is" in message for message in caplog.messages)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has graphs")
def test_a_compiler_that_fails_takes_no_graphs_along(
    stand_ins: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        def run(*_: Any) -> Any:
            raise RuntimeError("backend failed")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    step, _ = rehearsed(monkeypatch, 1, compile=True)
    assert type(step).__name__ == "GraphedStep"
    assert caplog.messages == ["the step runs without torch.compile: it failed: RuntimeError: backend failed"]


@pytest.mark.skipif(DEVICE == "cuda", reason="attention on a GPU is in bf16")
def test_what_is_compiled_serves_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as on a GPU, which reads bounds and no lengths."""
    counter = CompileCounter()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **settings: real(f, backend=counter, **settings))
    monkeypatch.setattr("earlybert.train.ragged._varlen", lambda q, k, v, scaling: q + k + v)
    torch._dynamo.reset()
    model = build("bert", "classification", False, num_hidden_layers=1)
    step = graphed(model, adamw(model, lr=1e-3), compile=True, precision="no")
    step.kernel = "varlen"
    counts = []
    for seed in range(6):
        step(step.prepare([batch_of([1, 5], "classification", seed)]))
        counts.append(counter.frame_count)
    assert counts[1] == counts[-1] > 0  # the second: transformers has noted what kind of labels there are


def rehearsed(monkeypatch: pytest.MonkeyPatch, parts: int, **options: Any) -> tuple[Any, Any]:
    """What `engine.build` takes for a search on a machine that it believes to have a GPU, and the model."""
    torch.manual_seed(0)
    model = tiny_model("bert", num_hidden_layers=1).train().to(DEVICE)
    with torch.no_grad():  # a head that does not say the same of every row
        model.classifier.weight.mul_(50)
        model.bert.pooler.dense.weight.mul_(10)
    monkeypatch.setattr(engine, "_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(engine, "_no_graph", lambda *_, **__: None)
    gates = Gates(model).attach()
    optimizer = adamw(model, lr=1e-4, gates=gates)
    sample = [batch_of([1, 5], "classification", part) for part in range(parts)]
    settings = {"precision": "bf16", "gates": gates, "l1": (1e-4, 1e-4)}
    return engine.build("fast", model, optimizer, sample=lambda: sample, **settings, **options), model
