"""How long a step takes, with the contenders taking turns so that drift hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice

import torch
from torch import nn

from ..tasks.batches import Batch, in_order
from ..ticket import Ticket, apply
from ..train.clock import Clock
from ..train.engine import build
from ..train.optimizer import adamw
from ..train.precision import autocast
from ..train.search import searching
from ..train.step import EagerStep, to_device
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
def contenders(bench: Bench, tickets: Mapping[str, Ticket]) -> Iterator[dict[str, EagerStep]]:
    """Steps of the dense model (`dense`), of its search (`search`), and of each ticket, on throw-away models."""
    config = bench.config
    with ExitStack() as stack:
        steps: dict[str, EagerStep] = {}
        dense = bench.theta_0()
        models = {"dense": dense, **{name: apply(dense, ticket, check=False) for name, ticket in tickets.items()}}
        for name, model in models.items():
            model.train()
            options = {"exact": config.exact, "compile": config.compile}
            steps[name] = build(
                bench.engine,
                model,
                adamw(model, lr=config.lr),
                precision=bench.precision,
                max_grad_norm=config.max_grad_norm,
                **options,
            )
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
            )
        )
        yield steps
        if bench.device.type == "cuda":
            torch.cuda.synchronize(bench.device)


def some_batches(bench: Bench, count: int = BATCHES) -> list[list[Batch]]:
    """The first optimizer steps' worth of training data."""
    return list(islice(bench.stream(SHARED_ORDER).starting_at(0), count))


def inference_seconds(bench: Bench, models: dict[str, nn.Module]) -> dict[str, float]:
    """Seconds a validation row, batches as in evaluation; models take turns, the median pass counts.

    Where there are more than `INFERENCE_BATCHES`, evenly spread ones of all lengths stand for them.
    """
    every = max(1, -(-len(bench.validation) // bench.config.batch_size) // INFERENCE_BATCHES)
    chosen = list(islice(in_order(bench.validation, bench.config.batch_size), 0, None, every))
    batches = [to_device(batch, bench.device) for _, batch in chosen]
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(INFERENCE_PASSES + 1):
        for name, model in models.items():
            began = time.perf_counter()
            with torch.no_grad():
                for batch in batches:
                    with autocast(bench.precision, bench.device):
                        model(**{key: value for key, value in batch.items() if key not in bench.validation.targets})
            if bench.device.type == "cuda":
                torch.cuda.synchronize(bench.device)
            times[name].append(time.perf_counter() - began)
    rows = sum(len(numbers) for numbers, _ in chosen)
    return {name: statistics.median(seconds[1:]) / rows for name, seconds in times.items()}
