"""The rounds of iterative magnitude pruning (Chen et al. 2020b), one dense training each."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ...baselines import imp
from ...ticket.tensors import Kind
from ...train.engine import build
from ...train.optimizer import adamw
from ..display import say
from ..drive import drive, resume
from ..run import Run
from .bench import SHARED_ORDER, Bench
from .plan import plan
from .stages import Begun

FILE = Kind("masks file", "earlybert-masks-1", "delete it and resume")
ROUND_STEPS = "search"
"""All rounds but the last find the ticket; they are logged as its search."""


def imp_rounds(bench: Bench, run: Run) -> None:
    """All trainings but the last, each leaving its masks in `masks-<round>.safetensors`."""
    for number in range(imp.ROUNDS - 1):
        if not _masks(run, number).exists():
            _one_round(bench, run, number)


def begin_imp(bench: Bench, run: Run, theta_0: nn.Module) -> Begun:
    """theta_0 under the last masks, for the last training; zeros become part of the weights at its end."""
    imp.masked(theta_0)
    _set_masks(run, imp.ROUNDS - 2, theta_0)
    about = {"imp": {**imp.cost(), "sparsity": imp.sparsity(theta_0)}}
    return Begun(theta_0, SHARED_ORDER, static=False, finish=lambda: imp.harden(theta_0), about=about)


def _one_round(bench: Bench, run: Run, number: int) -> None:
    config, lengths = bench.config, plan(bench)
    model = bench.theta_0()
    imp.masked(model)
    if number > 0:
        _set_masks(run, number - 1, model)
    torch.manual_seed(config.seed)
    step = build(
        bench.engine,
        model,
        adamw(model, lr=lengths.train_lr, weight_decay=config.weight_decay),
        exact=config.exact,
        static=False,
        sample=bench.sample,
        precision=bench.precision,
        max_grad_norm=config.max_grad_norm,
    )
    begins, ends = number * lengths.train, (number + 1) * lengths.train
    say(f"round {number + 1} of {imp.ROUNDS}: {1 - imp.sparsity(model):.0%} of the encoder's weights are there")
    first = resume(run, ROUND_STEPS, step, begins=begins)
    drive(
        run,
        ROUND_STEPS,
        step,
        bench.stream(SHARED_ORDER).starting_at(first),
        title=ROUND_STEPS,
        first=first,
        steps=ends,
        lr=lengths.train_lr,
        schedule=lambda step: lengths.train_schedule(step - begins),
        observers=(),
        state=bench.state,
    )
    imp.shrink(model)
    FILE.write(_masks(run, number), imp.masks(model), {"round": number + 1})
    run.checkpoint.unlink(missing_ok=True)


def _set_masks(run: Run, number: int, model: nn.Module) -> None:
    with FILE.reading(_masks(run, number)):
        imp.set_masks(model, FILE.read(_masks(run, number))[1])


def _masks(run: Run, number: int) -> Path:
    return run.path / f"masks-{number + 1}.safetensors"
