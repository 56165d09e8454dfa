"""What all stages of a pre-training run share: corpus, device, theta_0 and streams on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining

from ...anatomy import Refused
from ...config.pretrain import Pretrain
from ...data import shards
from ...data.corpus import Corpus
from ...data.masking import most
from ...data.stream import Layout, Stream
from ...tasks.batches import Batch
from ...train import sharded
from ...train.engine import Engine, chosen
from ...train.masked import held_out
from ...train.ranks import Ranks
from ...train.rehearsal import MICRO_BATCHES, ROWS
from ..machine import Machine
from .estimate import work
from .plan import Leg, Plan, bert_config, check_drawing, plan

SHARED_ORDER, TICKET_ORDER = 0, 1
"""Data orders: search and dense runs share one; a ticket trained from theta_0 has its own."""


@dataclass(frozen=True)
class Bench:
    """Everything a stage needs, checked before any compute."""

    config: Pretrain
    corpus: Corpus
    model: BertConfig
    plan: Plan
    device: torch.device
    precision: Literal["bf16", "no"]
    ranks: Ranks

    @classmethod
    def set_up(cls, config: Pretrain, machine: Machine | None = None) -> Bench:
        """Open the corpus and check the settings against it and the machine.

        Args:
            config: The settings.
            machine: Where to run, if that is known already.

        Raises:
            Refused: Any of them cannot be used.
        """
        if config.corpus is None:
            raise Refused("which text? give --corpus with a folder that earlybert prepare wrote.")
        machine = machine or Machine.found(config)
        if config.shard == "full":
            sharded.refuse(machine.ranks.world)
        lengths = plan(config, machine.ranks.world)
        corpus = Corpus(config.corpus, checksum=machine.ranks.main)
        model = bert_config(config, len(corpus.tokenizer), corpus.words.pad)
        if config.method != "dense":
            check_drawing(config, model)
        bench = cls(config, corpus, model, lengths, machine.device, machine.precision, machine.ranks)
        for leg in lengths.dense:
            bench.stream(leg, SHARED_ORDER)  # a length that holds no example is refused
            bench.held_out(leg)
        return bench

    @property
    def engine(self) -> Engine:
        """The step that the settings ask for, on this device."""
        return chosen(self.config.engine, self.device, self.ranks.world)

    def sample(self) -> list[Batch]:
        """A few rows, in one micro-batch or two, for a step to be rehearsed on."""
        leg = self.plan.train[0]
        stream, rows = self.stream(leg, SHARED_ORDER), min(leg.rows, ROWS)
        return [
            stream.batch(stream.places(number * rows, rows)) for number in range(min(leg.accumulate, MICRO_BATCHES))
        ]

    @property
    def text(self) -> str:
        """SHA-256 of the corpus's manifest, and so of every shard: a run goes on with the text it began with."""
        return hashlib.sha256((Path(self.corpus.folder) / shards.MANIFEST).read_bytes()).hexdigest()

    @property
    def sharded(self) -> bool:
        """Whether the model is cut up over the processes."""
        return self.config.shard == "full"

    def theta_0(self) -> nn.Module:
        """The model with random weights, the same each time, on the device; on the host where it is to be cut up."""
        torch.manual_seed(self.config.seed)
        kind: Any = BertForPreTraining if self.config.pairs else BertForMaskedLM
        # A model keeps the configuration it is given, and a cut writes into it.
        model = kind(deepcopy(self.model))
        return model if self.sharded else model.to(self.device)

    def stream(self, leg: Leg, order: int) -> Stream:
        """Training batches of a phase, in one of the two data orders."""
        # Each phase and order has draws of its own; the run's seed is below 2 ** 31.
        seed = self.config.seed + (order << 32) + (leg.number << 33)
        return Stream(
            self.corpus,
            self._layout(leg),
            rows=leg.rows,
            accumulate=leg.accumulate,
            rank=self.ranks.rank,
            world=self.ranks.world,
            seed=seed,
        )

    def held_out(self, leg: Leg) -> Iterator[Batch]:
        """Rows of held-out documents at the length of a phase, always the same."""
        wanted = self.config.eval_rows
        rows = next(rows for rows in range(min(leg.rows, wanted), 0, -1) if wanted % rows == 0)
        stream = Stream(self.corpus, self._layout(leg), rows=rows, seed=0, split="validation")
        return islice(stream.once(), wanted // rows)

    def score(self, model: nn.Module, leg: Leg) -> dict[str, float]:
        """Held-out loss and masked accuracy at the length of a phase."""
        return held_out(model, self.held_out(leg), precision=self.precision)

    def flops(self) -> int:
        """What the whole run will compute, search included, over all processes, if every row is full.

        Only for a run of so many steps; not for one with a budget of time.
        """
        return work(self.config, len(self.corpus.tokenizer)).flops

    def predictions(self, leg: Leg) -> int:
        """Places predicted in an optimizer step of this process."""
        return leg.accumulate * leg.rows * most(leg.phase.length)

    def _layout(self, leg: Leg) -> Layout:
        config = self.config
        return Layout(length=leg.phase.length, pairs=config.pairs, across=config.across, whole_words=config.whole_words)
