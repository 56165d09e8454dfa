"""Ordinary model folders of a run that is not finished: those it leaves on the way, and one of a stopped run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...anatomy import Refused
from ...data.corpus import Corpus
from ...ticket import Ticket, save
from ...ticket.files import remove_folder
from ...ticket.surgery import cut
from ...train import checkpoint
from ...train.loop import Done, refuse_infinite
from ...train.ranks import ALONE
from ...train.sharded import fill
from .bench import Bench
from .plan import bert_config, plan
from .run import PretrainRun


def whole(bench: Bench, model: nn.Module, ticket: Ticket | None) -> nn.Module:
    """A trained model as an ordinary one: itself, or put together on the host where it is cut up over processes.

    Of a model that is cut up, every process has to call this; in all but the first the weights are then random. No
    random number of the run is used.
    """
    if not bench.sharded:
        return model
    with torch.random.fork_rng([bench.device] if bench.device.type == "cuda" else []):
        found = bench.theta_0()
    if ticket is not None:
        cut(found, ticket)
    fill(found, model, keep=bench.ranks.main)
    return found


class Models:
    """Observer that writes the model of a run on the way, as an ordinary folder `checkpoints/step-N`.

    A folder appears whole. Only then do older ones go, beyond the `keep_models` newest; and newer ones, which a run
    that was killed and went on from before them is going to write again.

    Args:
        bench: With the settings.
        run: The folder. The first process writes.
        model: In training.
        ticket: It was cut by; None when it is whole.
        last: The step behind which `model/` is written anyway.
    """

    def __init__(self, bench: Bench, run: PretrainRun, model: nn.Module, ticket: Ticket | None, last: int) -> None:
        self._bench, self._run, self._model, self._ticket, self._last = bench, run, model, ticket, last

    def __call__(self, done: Done) -> bool:
        """Write one when it is time.

        Raises:
            Diverged: The weights are not finite; the older folders stay.
            Refused: The disk is full; the older folders stay.
        """
        config, main = self._bench.config, self._bench.ranks.main
        if done.step % config.save_every or done.step == self._last:
            return False
        refuse_infinite(self._model, done.step)
        if not (main or self._bench.sharded):
            return False
        found = whole(self._bench, self._model, self._ticket)
        if main:
            save(found, self._run.models / f"step-{done.step}", tokenizer=self._bench.corpus.tokenizer)
            prune(self._run.models, newest=done.step, keep=config.keep_models)
        return False


def prune(folder: Path, *, newest: int, keep: int) -> None:
    """Remove model folders but the newest.

    Args:
        folder: Of `step-N`; anything else in it stays.
        newest: Step of the folder that was written last. Those of later steps go.
        keep: How many stay; 0 for all up to it.

    Raises:
        Refused: The folder cannot be written.
    """
    found = {int(name[1]): path for path in folder.iterdir() if (name := re.fullmatch(r"step-(\d+)", path.name))}
    behind = sorted((step for step in found if step <= newest), reverse=True)
    for step in [*(step for step in found if step > newest), *(behind[keep:] if keep else [])]:
        remove_folder(found[step])


def stopped(path: Path) -> tuple[nn.Module, Any]:
    """The model in the last checkpoint of a run that was stopped in its training, whole or cut, and its tokenizer.

    The text is not read, but its folder has to be where it was: the tokenizer is there.

    Args:
        path: The run folder.

    Raises:
        Refused: It is no run of pre-training, or it has no checkpoint of the training.
    """
    run = PretrainRun.open(path)
    if not run.training:
        raise Refused(
            f"run folder {path} has no checkpoint of its training, so there is no model in it yet; go on with it by "
            f"earlybert pretrain --output {path} --resume."
        )
    if run.config.corpus is None:
        raise Refused(f"run folder {path} does not say where its corpus is, whose tokenizer is needed.")
    corpus = Corpus(run.config.corpus, checksum=False)
    shape = bert_config(run.config, len(corpus.tokenizer), corpus.words.pad)
    bench = Bench(run.config, corpus, shape, plan(run.config), torch.device("cpu"), "no", ALONE)
    run.refuse_other_text(bench.text, bench.corpus.folder)
    model = bench.theta_0()
    if run.config.method != "dense":
        cut(model, Ticket.load(run.ticket))
    checkpoint.load_model(run.checkpoint, model)
    return model.eval(), corpus.tokenizer
