"""The plan of a run of pre-training and what it would take, before anything runs; no text is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ...config.prepare import Preparation
from ...config.pretrain import Pretrain
from ...cost import PEAK
from ...report.sheet import Sheet
from ...train.ranks import ALONE
from ..machine import Machine
from .bench import Bench
from .estimate import ASSUMED_MFU, DEVICE, RATE, STATE_BYTES, Part, Work, number, work
from .plan import plan

COLUMNS = ("stage", "steps", "rows a step", "tokens a row", "G tokens", "PFLOP", "H100 hours")


def forecast(config: Pretrain) -> Sheet:
    """The stages of a run with their steps, tokens and FLOPs.

    Where the settings name a corpus, it is checked as for a run. Without one, the vocabulary is taken to be as large
    as `earlybert prepare` makes it by default. The device and the number of processes are not looked at.

    Raises:
        Refused: The settings do not fit each other, or the corpus cannot be used.
    """
    words, source = Preparation.vocabulary, "that earlybert prepare makes by default"
    notes: list[str] = []
    if config.corpus is not None:
        corpus = Bench.set_up(replace(config, shard="none"), Machine(torch.device("cpu"), "no", ALONE)).corpus
        words, source = len(corpus.tokenizer), "of the corpus"
        notes.append(f"The corpus has {corpus.manifest['counts']['train']['tokens']:,} tokens to train on.")
    found = work(config, words)
    rows = [_row(part, config) for part in found.parts]
    if config.minutes is None:
        rows.append(_cells("together", found.parts))
    return Sheet("What it would take", COLUMNS, rows, [*_about(config, found, f"{words:,} tokens {source}"), *notes])


def _row(part: Part, config: Pretrain) -> list[str]:
    """Steps of a phase are not known where there is a budget of time."""
    shape = f"{part.rows:,}", f"{part.length:,}"
    if part.steps:
        return _cells(part.name, [part], shape)
    share = plan(config).train[int(part.name.split()[-1]) - 1].share
    return [part.name, f"{share:.0%} of the time", *shape, "", "", ""]


def _cells(name: str, parts: Sequence[Part], shape: tuple[str, str] = ("", "")) -> list[str]:
    steps, tokens, flops = (sum(getattr(part, what) for part in parts) for what in ("steps", "tokens", "flops"))
    return [name, f"{steps:,}", *shape, *map(number, (tokens / 1e9, flops / 1e15, flops / RATE / 3600))]


def _about(config: Pretrain, found: Work, vocabulary: str) -> list[str]:
    """The sentences beneath."""
    cut = "" if config.method == "dense" else f", {found.after / 1e6:,.1f} M when it is cut"
    notes = [
        f"BERT of {config.layers} layers, {config.hidden} features, {config.attention_heads} heads and "
        f"{config.intermediate:,} neurons, {found.before / 1e6:,.1f} M parameters{cut}, with a vocabulary of "
        f"{vocabulary}.",
        f"Weights, gradients and moments of the dense model are {number(STATE_BYTES * found.before / 1e9)} GB; "
        "activations come on top.",
    ]
    if config.minutes is not None:
        given = f"The training goes on until {config.minutes:g} minutes have gone, search included"
        return [*notes, f"{given}; how many steps those are, the machine decides."]
    peak = f"{ASSUMED_MFU:.0%} of its peak of {PEAK[DEVICE] / 1e12:,.0f} TFLOP/s in bf16"
    return [
        *notes,
        f"Hours are those of one H100 at {peak}: assumed, not measured. Every row is taken as full; evaluation and "
        "writing come on top.",
    ]
