"""Pre-training's step in graphs against the eager one: on a GPU as it is, elsewhere without graphs or with stand-ins."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

from earlybert import Gates, apply
from earlybert.train import checkpoint
from earlybert.train.lamb import lamb
from earlybert.train.masked import MaskedStep
from earlybert.train.optimizer import adamw
from earlybert.train.pack import Packed
from earlybert.train.profile import profile
from earlybert.train.ranks import Ranks
from earlybert.train.rehearsal import rehearse
from earlybert.train.step import EagerStep
from tests.conftest import VOCABULARY, tiny_config, uneven
from tests.train.cuda.conftest import DEVICE, graphed, needs_triton
from tests.train.test_fast import NO_DROPOUT, batch_of, build

needs_triton()
pytestmark = pytest.mark.usefixtures("quick")

Batch = dict[str, Tensor]


def model_of(*, pairs: bool = True, cut: bool = False) -> Any:
    torch.manual_seed(0)
    kind = AutoModelForPreTraining if pairs else AutoModelForMaskedLM
    layers = 3 if cut else 1
    model = kind.from_config(tiny_config("bert", num_hidden_layers=layers, **NO_DROPOUT)).train()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return (apply(model, uneven("bert")) if cut else model).to(DEVICE)


def micro_batch(lengths: list[int], seed: int, *, pairs: bool = True) -> Batch:
    """As `data.stream` makes them: two predictions a row, the last of which only fills up."""
    random = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), 8
    present = torch.arange(longest) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, VOCABULARY, (rows, longest), generator=random) * present
    positions = torch.tensor([place for row in range(rows) for place in (longest * row, longest * row + 1)])
    labels = torch.randint(5, VOCABULARY, (2 * rows,), generator=random)
    positions[-1], labels[-1] = 0, -100
    batch = {
        "input_ids": ids,
        "attention_mask": present.long(),
        "token_type_ids": present.long() * torch.randint(0, 2, (rows, 1), generator=random),
        "masked_positions": positions,
        "masked_labels": labels,
    }
    return {**batch, "next_sentence_label": torch.randint(0, 2, (rows,), generator=random)} if pairs else batch


def steps_of(count: int, micro: int, *, pairs: bool = True) -> list[list[Batch]]:
    """Micro-batches of each step, of two sizes."""
    sizes = [[3, 5], [2, 6], [4, 7]]
    return [
        [micro_batch(sizes[(step + one) % 3], 10 * step + one, pairs=pairs) for one in range(micro)]
        for step in range(count)
    ]


def flat(model: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten().cpu() for parameter in model.parameters()])


def take(step: EagerStep, data: list[list[Batch]]) -> list[float]:
    return [float(step(step.prepare(micro))) for micro in data]


def masked_graphed(*args: Any, **settings: Any) -> Any:
    from earlybert.train.cuda.graphed_masked import GraphedMaskedStep

    return GraphedMaskedStep(*args, **{"precision": "bf16", **({} if DEVICE == "cuda" else {"graphs": 0}), **settings})


def in_fp32(model: Any, make: Callable[..., Any], data: Any, eager: Any, ours: Any) -> tuple[Any, Any]:
    """The same steps to rounding: losses, and every parameter at the end."""
    found = []
    for kind in (eager, lambda *args: ours(*args, precision="no")):
        mine = copy.deepcopy(model)
        found.append((take(kind(mine, make(mine)), data), mine))
    (exact, one), (fast, two) = found
    assert fast == pytest.approx(exact, abs=2e-6)
    torch.testing.assert_close(flat(two), flat(one), rtol=1e-5, atol=5e-6)
    return one, two


def within_bf16(model: Any, make: Callable[..., Any], data: Any, steps: tuple[Any, ...]) -> tuple[Any, ...]:
    """Steps in fp32, in bf16, and ours: ours is as far from fp32 as the eager bf16 step is, or little more."""
    start, found = flat(model), []
    for kind in steps:
        mine = copy.deepcopy(model)
        found.append((take(kind(mine, make(mine)), data), mine))
    (exact, one), (_, two), (ours, three) = found
    assert ours == pytest.approx(exact, abs=0.01)
    moved = (flat(one) - start).norm()
    assert (flat(three) - flat(one)).norm() / moved < 2 * (flat(two) - flat(one)).norm() / moved + 0.02
    return one, three


def eager_bf16(*args: Any) -> Any:
    return MaskedStep(*args, precision="bf16")


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "lamb": lambda model: lamb(model, lr=2e-3),
    # a larger eps: Adam would blow the rounding of a gradient near zero up to a whole step
    "adamw": lambda model: torch.optim.AdamW(adamw(model, lr=1e-3, weight_decay=0.01).param_groups, eps=1e-4),
}


@pytest.mark.parametrize(
    ("optimizer", "pairs", "cut", "micro"),
    [
        ("lamb", True, False, 3),
        ("adamw", False, True, 1),
        pytest.param("lamb", True, True, 2, marks=pytest.mark.slow),
        pytest.param("adamw", True, False, 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.skipif(DEVICE == "cuda", reason="attention on a GPU is in bf16")
def test_steps_are_the_eager_ones_to_rounding(optimizer: str, pairs: bool, cut: bool, micro: int) -> None:
    model = model_of(pairs=pairs, cut=cut)
    data = steps_of(2, micro, pairs=pairs)
    exact, ours = in_fp32(model, OPTIMIZERS[optimizer], data, MaskedStep, masked_graphed)
    for (name, a), b, start in zip(exact.named_parameters(), ours.parameters(), model.parameters(), strict=True):
        assert not torch.equal(b, start) or "key.bias" in name or torch.equal(a, start), name


def test_steps_are_within_bf16_of_the_eager_ones() -> None:
    within_bf16(model_of(), OPTIMIZERS["lamb"], steps_of(2, 2), (MaskedStep, eager_bf16, masked_graphed))


def test_what_no_batch_reaches_stays(tmp_path: Path) -> None:
    """A pooler beside packed rows: LAMB's trust ratio would turn its decay alone into a whole step."""
    model = model_of(pairs=True)
    mine = copy.deepcopy(model)
    optimizer = lamb(mine, lr=1e-1)
    take(masked_graphed(mine, optimizer), steps_of(2, 1, pairs=False))
    for name in ("bert.pooler.dense.weight", "cls.seq_relationship.weight"):
        assert torch.equal(mine.get_parameter(name), model.get_parameter(name))
        assert mine.get_parameter(name) not in optimizer.state
    checkpoint.save(tmp_path / "c", model=mine, optimizer=optimizer, state={})
    checkpoint.load(tmp_path / "c", model=model, optimizer=lamb(model, lr=1e-1))


@pytest.mark.parametrize("optimizer", ["lamb", pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_resumed_run_and_the_plain_optimizer_go_on_from_its_checkpoint(tmp_path: Path, optimizer: str) -> None:
    make, data, model = OPTIMIZERS[optimizer], steps_of(3, 1), model_of()
    whole = copy.deepcopy(model)
    step = masked_graphed(whole, make(whole))
    take(step, data[:2])
    checkpoint.save(tmp_path / "c", model=whole, optimizer=step.optimizer, state={})
    if DEVICE == "cpu":  # the interpreter rounds copies to bf16 by cutting off, reading them anew does not
        step.refresh()
    take(step, data[2:])

    resumed = model_of()
    again = masked_graphed(resumed, make(resumed))
    take(again, data[:1])  # what it did before must not matter
    checkpoint.load(tmp_path / "c", model=resumed, optimizer=again.optimizer)
    again.refresh()
    take(again, data[2:])
    if DEVICE == "cpu":
        assert torch.equal(flat(resumed), flat(whole))

    plain = model_of()
    other = make(plain)
    checkpoint.load(tmp_path / "c", model=plain, optimizer=other)
    before = flat(plain)
    take(MaskedStep(plain, other), data[2:])
    assert (flat(plain) - flat(whole)).norm() < 0.05 * (flat(whole) - before).norm()

    checkpoint.save(tmp_path / "d", model=plain, optimizer=other, state={})  # and back
    third = masked_graphed(resumed, again.optimizer)
    checkpoint.load(tmp_path / "d", model=resumed, optimizer=again.optimizer)
    third.refresh()
    assert torch.equal(flat(resumed), flat(plain))
    take(third, data[:1])
    assert {float(state["step"]) for state in again.optimizer.state.values()} == {4.0}


class Twice(Ranks):
    """Two processes that hold the same."""

    def totals(self, values: Any) -> list[float]:
        return [2 * value for value in values]

    def add(self, tensors: Any) -> None:
        for tensor in tensors:
            tensor.mul_(2)


def test_two_processes_are_twice_the_micro_batches() -> None:
    (data,), model = steps_of(1, 2), model_of()
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    loss = take(masked_graphed(one, lamb(one, lr=1e-2)), [[*data, *data]])
    shared = take(masked_graphed(two, lamb(two, lr=1e-2), ranks=Twice(0, 2)), [data])
    assert shared == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(flat(one), flat(two), rtol=0, atol=1e-5)


@pytest.mark.skipif(DEVICE == "cuda", reason="attention on a GPU is in bf16")
def test_a_search_is_the_eager_one_to_rounding() -> None:
    """Coefficients away from 1, their L1 term, several micro-batches, LAMB without trust ratio on them."""
    model, data, rows = model_of(), steps_of(2, 2), []
    for kind in (MaskedStep, functools.partial(masked_graphed, precision="no")):
        mine = copy.deepcopy(model)
        with Gates(mine) as gates:
            for parameter in gates.parameters():
                parameter.data.normal_(1.0, 0.7, generator=torch.Generator().manual_seed(1))
            before = gates.row().detach()
            step = kind(mine, lamb(mine, lr=1e-3, gates=gates), gates=gates, l1=(1e-2, 2e-2))
            losses = take(step, data)
            rows.append((losses, gates.row().detach(), flat(mine)))
    assert rows[1][0] == pytest.approx(rows[0][0], abs=2e-6)
    assert (rows[0][1] - before).abs().min() > 1e-4
    torch.testing.assert_close(rows[1][1], rows[0][1], rtol=0, atol=5e-6)
    torch.testing.assert_close(rows[1][2], rows[0][2], rtol=1e-5, atol=5e-6)


def test_rows_with_labels_in_many_micro_batches() -> None:
    """Labels weigh alike, and a step of one micro-batch after one of three goes on with the same moments."""
    model = build("bert", "classification", cut=False, num_hidden_layers=1).to(DEVICE)
    data = [
        [batch_of(sizes, "classification", 3) for sizes in ([1, 5], [3, 4, 2], [6])],
        [batch_of([4, 2], "classification", 9)],
    ]

    if DEVICE == "cpu":
        in_fp32(model, OPTIMIZERS["adamw"], [*data, data[0]], EagerStep, graphed)
        return
    half = functools.partial(EagerStep, precision="bf16")
    within_bf16(model, OPTIMIZERS["adamw"], [*data, data[0]], (EagerStep, half, graphed))


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has graphs")
def test_replays_do_what_the_work_without_graphs_does(stand_ins: list[int]) -> None:
    """Bit by bit: everything that changes from step to step, rates and shares included, reaches a replay."""
    data, model, ends = steps_of(3, 2), model_of(), []
    for graphs in (0, 24):
        mine = copy.deepcopy(model)
        optimizer = lamb(mine, lr=1e-2)
        step = masked_graphed(mine, optimizer, graphs=graphs, exact=True)  # that attention reads lengths from a tensor
        losses = []
        for number, micro in enumerate(data):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 / (1 + number)
            losses += take(step, [micro])
        ends.append((losses, flat(mine)))
        if graphs:
            assert stand_ins[0] == len(step.graphs) > 1
            assert stand_ins[1] == 6
            found = profile(step, steps_of(1, 2), 1)
            assert set(found["seconds"]) == {"host", "whole", "optimizer"}
    assert ends[1][0] == ends[0][0]
    assert torch.equal(ends[1][1], ends[0][1])


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has graphs")
def test_it_passes_its_rehearsal(stand_ins: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = model_of(), steps_of(1, 2)[0]
    optimizer = lamb(model, lr=1e-4)
    step = masked_graphed(model, optimizer, graphs=24, exact=True)

    def plain(mode: Any) -> MaskedStep:
        return MaskedStep(model, optimizer, precision=mode)

    assert rehearse(step, plain, sample) is None
    assert stand_ins[1] > 3
    monkeypatch.setattr(Packed, "take", lambda *_: None)
    assert "fp32" in (rehearse(step, plain, sample) or "")


def test_graphs_are_bounded_and_too_many_sizes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    from earlybert.train.cuda.graphs import Graphs

    graphs, made = Graphs(2, torch.device("cpu")), []

    def find(key: int) -> Any:
        return graphs.find(key, lambda: made.append(key) or key)

    assert [find(key) for key in (1, 2, 3)] == [None] * 3  # met once
    assert [find(key) for key in (1, 2, 1, 3, 1)] == [1, 2, 1, 3, 1]
    assert made == [1, 2, 3]  # 2 went, the one unused longest
    assert len(graphs) == 2
    assert not caplog.records
    assert [find(2), find(3)] == [2, 3]
    assert [record.message[:40] for record in caplog.records] == ["batches come in more sizes than the 2 CU"]
    graphs.clear()
    assert find(1) is None


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU has graphs")
def test_a_capture_that_fails_loses_nothing_but_speed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from earlybert.train.cuda.graphs import Graphs

    def fails(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(Graphs, "capture", fails)
    data, model, ends = steps_of(1, 3), model_of(), []
    for graphs in (0, 24):
        mine = copy.deepcopy(model)
        take(masked_graphed(mine, lamb(mine, lr=1e-2), graphs=graphs), data)
        ends.append(flat(mine))
    assert torch.equal(*ends)
    assert [record.message for record in caplog.records] == [
        "CUDA graphs are off, steps will be slower: operation not permitted when stream is capturing"
    ]
