"""What all stages of a run share: data, tokenizer, device, precision, and theta_0 on demand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn

from ..anatomy import Refused, family_of
from ..config import Finetune
from ..tasks import Task
from ..tasks import load as load_task
from ..tasks.batches import Rows, Stream
from ..tasks.encode import encode
from ..tasks.head import load_config, load_model, load_tokenizer
from ..tasks.metrics import compute
from ..train.evaluate import predict
from ..train.precision import resolve

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
    device: torch.device
    precision: Literal["bf16", "no"]
    notes: tuple[str, ...]
    """Sentences to show before training."""

    @classmethod
    def set_up(cls, config: Finetune) -> Bench:
        """Load and check model configuration, data and device.

        Raises:
            Refused: Any of them cannot be used.
        """
        accelerator = Accelerator(cpu=config.device == "cpu")
        if accelerator.num_processes > 1:
            raise Refused("fine-tuning runs on one process for now; start it without a launcher.")
        if config.device == "cuda" and accelerator.device.type != "cuda":
            raise Refused("--device cuda was asked for, but torch sees no CUDA device.")
        task = load_task(config, config.seed)
        model_config = load_config(config.model)
        longest = getattr(model_config, "max_position_embeddings", None)
        offset = family_of(model_config.model_type).first_position(model_config)
        if longest is not None and config.max_length > longest - offset:
            raise Refused(
                f"max_length {config.max_length} is more than the {longest - offset} tokens that model "
                f"{config.model!r} takes."
            )
        tokenizer = load_tokenizer(config.model)
        if len(tokenizer) > model_config.vocab_size:
            raise Refused(
                f"the tokenizer of model {config.model!r} has {len(tokenizer):,} tokens, the model only "
                f"{model_config.vocab_size:,}; they do not belong together."
            )
        train, cut = encode(task.train, tokenizer, config.max_length)
        validation, _ = encode(task.validation, tokenizer, config.max_length)
        notes = [*task.notes]
        if cut == len(train) and not config.truncate:
            raise Refused(
                f"all {cut:,} training rows are longer than {config.max_length} tokens and would be cut; raise "
                "--max-length, or accept it with --truncate."
            )
        if cut:
            notes.append(
                f"{cut:,} of {len(train):,} training rows are longer than {config.max_length} tokens and are cut."
            )
        device = accelerator.device
        return cls(config, task, tokenizer, train, validation, device, resolve(config.precision, device), tuple(notes))

    def theta_0(self) -> nn.Module:
        """A fresh copy of the model before any training, task head included, on the device."""
        model = load_model(self.config.model, self.task, self.config.seed)
        if model.config.pad_token_id is None:  # a classifier that reads a row's last token has to know where it ends
            model.config.pad_token_id = self.tokenizer.pad_token_id
        return model.to(self.device)

    def stream(self, order: int) -> Stream:
        """Training batches in one of the two data orders."""
        config = self.config
        return Stream(self.train, batch_size=config.batch_size, accumulate=config.accumulate, seed=(config.seed, order))

    def score(self, model: nn.Module) -> dict[str, float]:
        """The task's metrics on the validation rows."""
        predicted = predict(model, self.validation, batch_size=self.config.batch_size * 2, precision=self.precision)
        labels = torch.tensor(self.validation.labels).numpy()
        return compute(self.task.metrics, predicted, labels, classes=len(self.task.labels))


def digest(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers, to know theta_0 again."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
