"""How long a step takes, with the contenders taking turns so that drift hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn

from ...tasks.batches import Batch, in_order
from ...ticket import Ticket, apply
from ...train.clock import Clock
from ...train.engine import build
from ...train.matching import matching
from ...train.optimizer import adamw
from ...train.precision import autocast
from ...train.search import searching
from ...train.step import EagerStep, to_device
from .bench import SHARED_ORDER, Bench

BATCHES = 4
"""Different steps' worth of data that are gone through again and again: real lengths, and few graphs to capture."""
PASSES = 3
INFERENCE_BATCHES, INFERENCE_PASSES = 24, 3
WARM_UP = {"cuda": 2}
"""Passes that do not count, by device: on CUDA the second one captures graphs; 1 elsewhere."""


def in_turns(
    steps: Mapping[str, EagerStep],
    batches: Sequence[Sequence[Batch]],
    *,
    passes: int = PASSES,
    seconds: float | None = None,
) -> dict[str, list[float]]:
    """Mean seconds of a step in each timed pass over the batches, by contender.

    Args:
        steps: What to time. Their models train on.
        batches: Micro-batches of each optimizer step.
        passes: Timed passes, at least.
        seconds: Go on until so much time has passed, warm-up included.
    """
    ends = time.perf_counter() + (seconds or 0.0)
    found: dict[str, list[float]] = {name: [] for name in steps}
    warm_up = max(WARM_UP.get(step.device.type, 1) for step in steps.values())
    passed = 0
    while passed < warm_up + passes or time.perf_counter() < ends:
        for name, step in steps.items():
            clock = Clock(step.device)
            for prepared in [step.prepare(micro_batches) for micro_batches in batches]:
                with clock:
                    step(prepared)
            found[name].append(statistics.fmean(clock.read()))
        passed += 1
    return {name: times[warm_up:] for name, times in found.items()}


@contextmanager
def contenders(bench: Bench, tickets: Mapping[str, Ticket], *, match: float = 0.0) -> Iterator[dict[str, EagerStep]]:
    """Steps of the dense model (`dense`), of its search (`search`), and of each ticket, on throw-away models.

    Args:
        bench: With the data and the settings.
        tickets: By name.
        match: Where it is not 0, also `matched`: a step of the first ticket that matches hidden states of the dense
            model, with this weight.
    """
    config = bench.config
    matched = {"matched": next(iter(tickets.values()))} if match else {}
    with ExitStack() as stack:
        steps: dict[str, EagerStep] = {}
        dense = bench.theta_0()
        cut = {name: apply(dense, ticket, check=False) for name, ticket in {**tickets, **matched}.items()}
        models = {"dense": dense, **cut}
        for name, model in models.items():
            model.train()
            options: dict[str, Any] = {"exact": config.exact, "compile": config.compile, "sample": bench.sample}
            steps[name] = build(
                bench.engine,
                model,
                adamw(model, lr=config.lr),
                precision=bench.precision,
                max_grad_norm=config.max_grad_norm,
                static=name != "matched",
                **options,
            )
        if match:
            stack.enter_context(matching(steps["matched"], bench.theta_0(), match))
        searched = bench.theta_0().train()
        steps["search"] = stack.enter_context(
            searching(
                searched,
                lr=config.dense_lr,
                l1=(config.l1_heads, config.l1_neurons),
                max_grad_norm=config.max_grad_norm,
                precision=bench.precision,
                engine=bench.engine,
                exact=config.exact,
                compile=config.compile,
                sample=bench.sample,
            )
        )
        yield steps
        if bench.device.type == "cuda":
            torch.cuda.synchronize(bench.device)


def some_batches(bench: Bench, count: int = BATCHES) -> list[list[Batch]]:
    """The first optimizer steps' worth of training data."""
    return list(islice(bench.stream(SHARED_ORDER).starting_at(0), count))


def inference_seconds(bench: Bench, models: Mapping[str, nn.Module]) -> dict[str, float]:
    """Seconds a validation row, batches as in evaluation; models take turns at every batch, the median of each counts.

    Models whose tensors have the same shapes are one network, and timed as one. Where there are more batches than
    `INFERENCE_BATCHES`, evenly spread ones of all lengths stand for them.
    """
    every = max(1, -(-len(bench.validation) // bench.config.batch_size) // INFERENCE_BATCHES)
    chosen = list(islice(in_order(bench.validation, bench.config.batch_size), 0, None, every))
    rows = sum(len(numbers) for numbers, _ in chosen)
    networks = {name: tuple(tensor.shape for tensor in model.state_dict().values()) for name, model in models.items()}
    timed = {network: models[name] for name, network in networks.items()}
    seconds = dict.fromkeys(timed, 0.0)
    for _, batch in chosen:
        inputs = to_device({key: batch[key] for key in batch if key not in bench.validation.targets}, bench.device)
        times: dict[Any, list[float]] = {network: [] for network in timed}
        for turn in range(INFERENCE_PASSES + 1):
            for network in list(timed)[:: -1 if turn % 2 else 1]:
                times[network].append(_forward_seconds(bench, timed[network], inputs))
        for network, found in times.items():
            seconds[network] += statistics.median(found[1:])
    return {name: seconds[network] / rows for name, network in networks.items()}


def _forward_seconds(bench: Bench, model: nn.Module, inputs: Batch) -> float:
    began = time.perf_counter()
    with torch.no_grad(), autocast(bench.precision, bench.device):
        model(**inputs)
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)
    return time.perf_counter() - began
