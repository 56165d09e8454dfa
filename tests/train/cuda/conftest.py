"""Triton kernels on whatever device is here: a GPU compiles them, Triton's interpreter runs them on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def needs_triton() -> None:
    """Skip a module of tests where Triton is missing, or was imported before it was told to interpret."""
    triton = pytest.importorskip("triton")
    if DEVICE == "cpu" and not triton.knobs.runtime.interpret:
        pytest.skip("without a GPU, TRITON_INTERPRET=1 must be set", allow_module_level=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs, no tuning and small buckets of tokens: the interpreter takes a millisecond for a line."""
    from earlybert.train.cuda import copies, embed, graphed, kernels, linears

    if DEVICE == "cpu":
        for module in (copies, embed, kernels, linears):
            monkeypatch.setattr(module, "PROGRAMS", 5)
        monkeypatch.setattr(graphed, "TOKENS", 8)
        monkeypatch.setattr(kernels._bias_gelu_backward, "configs", kernels.TILINGS[:1])
        _patch_once(monkeypatch)


def _patch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter replaces Triton's language anew for every call inside a kernel: most of its time."""
    from triton.runtime import interpreter  # pyright: ignore

    replaced = set()

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if function.fn.__module__ not in replaced:
            replaced.add(function.fn.__module__)
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


def graphed(*args: Any, **settings: Any) -> Any:
    """The step of `train.cuda.graphed`; without a GPU its uncaptured path."""
    from earlybert.train.cuda.graphed import GraphedStep

    return GraphedStep(*args, **{"precision": "bf16", **({} if DEVICE == "cuda" else {"graphs": 0}), **settings})


class StandIn:
    """What a CUDA graph does, without one: the captured work is done again at every replay, on the captured tensors."""

    def __init__(self, replay: Callable[[], None]) -> None:
        self.replay = replay


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs of stand-ins; how often one was captured, and replayed."""
    from earlybert.train.cuda.accumulation import Accumulation
    from earlybert.train.cuda.graphed import GraphedStep
    from earlybert.train.cuda.graphs import Graphs

    counts = [0, 0]

    def capture(_: Any, work: Callable[[], Any]) -> Any:
        counts[0] += 1
        result = torch.zeros(())

        def replay() -> None:
            counts[1] += 1
            found = work()
            if found is not None:
                result.copy_(found)

        return StandIn(replay), result

    monkeypatch.setattr(Graphs, "capture", capture)
    # A graph's gradients do not move; those of a stand-in lie elsewhere each time, and are found before they are read.
    for kind, filling, reading in ((Accumulation, "_fill", "_sum"), (GraphedStep, "_fill_addresses", "_update")):
        fill, read = getattr(kind, filling), getattr(kind, reading)

        def after_filling(self: Any, *args: Any, fill: Any = fill, read: Any = read) -> None:
            fill(self, *args)
            read(self, *args)

        monkeypatch.setattr(kind, filling, lambda *_: None)
        monkeypatch.setattr(kind, reading, after_filling)
    return counts
