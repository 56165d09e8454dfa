"""What all stages of a run share: data, tokenizer, device, precision, and theta_0 on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
from torch import nn

from ...anatomy import Refused, family_of
from ...config.finetune import Data, Finetune
from ...tasks import Examples, Predictions, Task
from ...tasks import load as load_task
from ...tasks.batches import Batch, Rows, Stream
from ...tasks.head import load_config, load_model, load_tokenizer
from ...train.engine import Engine, chosen
from ...train.evaluate import predict
from ...train.ranks import ALONE, Ranks
from ..machine import Machine, refuse_launcher

SHARED_ORDER, TICKET_ORDER = 0, 1
"""Data orders: search, dense runs and `weights: keep` share one; a ticket trained from theta_0 has its own."""


@dataclass(frozen=True)
class Bench:
    """Everything a stage needs, checked before any compute."""

    config: Finetune
    task: Task
    tokenizer: Any
    train: Rows
    validation: Rows
    others: Mapping[str, Rows]
    """Those of `task.others`."""
    device: torch.device
    precision: Literal["bf16", "no"]
    notes: tuple[str, ...]
    """Sentences to show before training."""
    ranks: Ranks = ALONE

    @classmethod
    def set_up(cls, config: Finetune, machine: Machine | None = None, *, reuse: bool = False) -> Bench:
        """Load and check model configuration, data and device.

        Args:
            config: The settings.
            machine: Where to run, if that is known already; one process when not.
            reuse: Take the data that an earlier run of this process has read, for a grid of runs on the same files.

        Raises:
            Refused: Any of them cannot be used.
        """
        if not reuse:
            _task.cache_clear()
            _encoded.cache_clear()
        if machine is None:
            refuse_launcher("this command")
            machine = Machine.found(config)
        data = Data(**{f.name: getattr(config, f.name) for f in fields(Data)})
        task = _task(data)
        # A model that was pre-trained cut is fine-tuned as it is; everything else begins with the full model.
        model_config = load_config(config.model, offline=config.offline, cut=config.method == "dense")
        longest = getattr(model_config, "max_position_embeddings", None)
        offset = family_of(model_config.model_type).first_position(model_config)
        if longest is not None and config.max_length > longest - offset:
            raise Refused(
                f"max_length {config.max_length} is more than the {longest - offset} tokens that model "
                f"{config.model!r} takes."
            )
        tokenizer = load_tokenizer(config.model, offline=config.offline)
        if len(tokenizer) > model_config.vocab_size:
            raise Refused(
                f"the tokenizer of model {config.model!r} has {len(tokenizer):,} tokens, the model only "
                f"{model_config.vocab_size:,}; they do not belong together."
            )
        train, cut, validation, others = _encoded(data, config.model)
        notes = [*task.notes]
        if cut == len(task.train) and not config.truncate:
            raise Refused(
                f"all {cut:,} training rows are longer than {config.max_length} tokens and would be cut; raise "
                "--max-length, or accept it with --truncate."
            )
        if cut:
            notes.append(task.cut_note(cut, config))
        device, precision, ranks = machine.device, machine.precision, machine.ranks
        return cls(config, task, tokenizer, train, validation, others, device, precision, tuple(notes), ranks)

    @property
    def engine(self) -> Engine:
        """The step that the settings ask for, on this device."""
        return chosen(self.config.engine, self.device, self.ranks.world)

    def sample(self) -> list[Batch]:
        """The micro-batches of a first step, for a step to be rehearsed on."""
        return next(iter(self.stream(SHARED_ORDER).starting_at(0)))

    @cached_property
    def text(self) -> str:
        """SHA-256 of the training rows and the names of their classes: a run goes on with those it began with."""
        return hashlib.sha256("\n".join([self.train.digest(), *self.task.labels]).encode()).hexdigest()

    def state(self) -> dict[str, Any]:
        """What a checkpoint of any stage has to remember: what it was trained on."""
        return {"text": self.text}

    @property
    def where(self) -> str:
        """Where the data come from."""
        return str(self.config.train_file or self.config.data_dir or self.task.name)

    def theta_0(self) -> nn.Module:
        """A fresh copy of the model before any training, task head included, on the device."""
        config = self.config
        model = load_model(config.model, self.task, config.seed, offline=config.offline)
        if model.config.pad_token_id is None:  # a classifier that reads a row's last token has to know where it ends
            model.config.pad_token_id = self.tokenizer.pad_token_id
        return model.to(self.device)

    def stream(self, order: int) -> Stream:
        """Training batches in one of the two data orders."""
        config = self.config
        return Stream(self.train, batch_size=config.batch_size, accumulate=config.accumulate, seed=(config.seed, order))

    def predict(self, model: nn.Module) -> Predictions:
        """What a model says of the validation rows, and of those of `others`."""
        also = {name: self._predict(model, self.task.others[name], rows) for name, rows in self.others.items()}
        return replace(self._predict(model, self.task.validation, self.validation), also=also)

    def predict_on(self, model: nn.Module, examples: Examples) -> Predictions:
        """What a model says of other rows of the task."""
        return self._predict(model, examples, self.task.encode(examples, self.tokenizer, self.config)[0])

    def refuse_other_labels(self, model: nn.Module) -> None:
        """The data has to name the classes that the model was trained on: it may have changed since.

        Args:
            model: Trained, with the names of its classes in its configuration.

        Raises:
            Refused: It names others, or in another order.
        """
        if self.task.problem != "classification":
            return
        settings: Any = model.config
        theirs = [str(name) for _, name in sorted(settings.id2label.items())]
        if theirs != list(self.task.labels):
            where = self.config.train_file or self.task.name
            raise Refused(
                f"the labels in {where} are {', '.join(self.task.labels[:10])} now, and the model was trained on "
                f"{', '.join(theirs[:10])}; the data has changed since, so no score of it would mean anything."
            )

    def score(self, model: nn.Module) -> dict[str, float]:
        """The task's metrics on the validation rows, the headline first."""
        return self.predict(model).score()

    def _predict(self, model: nn.Module, examples: Examples, rows: Rows) -> Predictions:
        # bf16 has 8 bits: many rows of a regression would get the same value, and ties spoil a rank correlation.
        precision = "no" if self.task.problem == "regression" else self.precision
        read = predict(model, rows, batch_size=self.config.batch_size * 2, precision=precision)
        return self.task.predictions(examples, rows, read)


@lru_cache(maxsize=2)
def _task(data: Data) -> Task:
    """Text is read once for all the runs of a comparison."""
    return load_task(data)


@lru_cache(maxsize=2)
def _encoded(data: Data, model: str) -> tuple[Rows, int, Rows, dict[str, Rows]]:
    """Tokenised training rows and how many were cut, validation rows, and those of `task.others`."""
    task, tokenizer = _task(data), load_tokenizer(model, offline=data.offline)
    train, cut = task.encode(task.train, tokenizer, data)
    validation, _ = task.encode(task.validation, tokenizer, data)
    return train, cut, validation, {name: task.encode(rows, tokenizer, data)[0] for name, rows in task.others.items()}
