"""One of two or more processes that hold a sharded model against a whole one.

python -m tests.train.sharded_worker CORPUS FOLDER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from earlybert.data.corpus import Corpus
from earlybert.data.stream import Layout, Stream
from earlybert.tasks.batches import Batch
from earlybert.ticket import Gates
from earlybert.train import checkpoint, engine
from earlybert.train.lamb import lamb
from earlybert.train.loop import refuse_infinite
from earlybert.train.masked import CommonStep, held_out
from earlybert.train.optimizer import set_rate
from earlybert.train.ranks import ALONE, Ranks
from earlybert.train.sharded import fill, gathered, part

from .test_masked import model_of

STEPS, ACCUMULATE, WORLD = 4, 3, int(os.environ["WORLD_SIZE"])


class Side:
    """A step, sharded or whole, with its gates if it searches, and the batches that it takes."""

    def __init__(
        self,
        corpus: Corpus,
        ranks: Ranks,
        kind: Literal["eager", "fast"],
        open: ExitStack,
        *,
        search: bool,
        shard: bool,
    ) -> None:
        self.corpus, self.ranks = corpus, ranks
        model = model_of("bert", pairs=False)
        gates = open.enter_context(Gates(model)) if search else None
        optimizer = lamb(model, lr=2e-2, gates=gates)
        options: dict[str, Any] = {"ranks": ranks, "masked": True, "gates": gates, "l1": (1e-3, 1e-3)}
        device = torch.device("cpu") if shard else None
        # A norm that every gradient is above: the clipping is in force.
        step = engine.build(kind, model, optimizer, max_grad_norm=0.1, shard=device, **options)
        assert isinstance(step, CommonStep)
        self.step, self.gates = step, gates

    def batches(self, number: int) -> Sequence[Batch]:
        accumulate = ACCUMULATE * WORLD // self.ranks.world
        layout = Layout(length=32, pairs=False)
        place = {"rank": self.ranks.rank, "world": self.ranks.world}
        return Stream(self.corpus, layout, rows=4, accumulate=accumulate, seed=1, **place).step(number)

    def take(self, first: int, steps: int) -> list[float]:
        losses = []
        for number in range(first, steps):
            set_rate(self.step.optimizer, 1 / (1 + number))
            losses.append(self.step(self.step.prepare(self.batches(number))).item())
        refuse_infinite(self.step.model, steps, self.gates)
        return losses

    def values(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint holds of model and optimizer, whole."""
        found: dict[str, torch.Tensor] = dict(self.step.model.named_parameters())
        for index, entry in self.step.optimizer.state_dict()["state"].items():
            found |= {f"{index}.{name}": value for name, value in entry.items()}
        if self.gates is not None:
            found |= {"heads": self.gates.heads, "neurons": self.gates.neurons}
        return {name: value.clone() for name, value in gathered(found).items()}

    def save(self, path: Path) -> None:
        parts = {"model": self.step.model, "optimizer": self.step.optimizer, "gates": self.gates}
        checkpoint.save(path, **parts, state={"step": 0}, write=self.ranks.main)
        self.ranks.totals([0])  # the file is there before another process looks

    def load(self, path: Path) -> None:
        checkpoint.load(path, model=self.step.model, optimizer=self.step.optimizer, gates=self.gates)


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}")


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def compare(corpus: Corpus, ranks: Ranks, folder: Path, kind: Literal["eager", "fast"], *, search: bool) -> None:
    """A sharded run against a whole one of one process: its steps, its checkpoints both ways, its score."""
    with ExitStack() as open:

        def side(*, shard: bool) -> Side:
            return Side(corpus, ranks if shard else ALONE, kind, open, search=search, shard=shard)

        whole, sharded, again, apart, onwards = (side(shard=each) for each in (False, True, True, False, True))
        start = whole.values()
        halfway = whole.take(0, 2)
        mine, theirs = folder / f"sharded-{kind}", folder / f"whole-{kind}-{ranks.rank}"
        whole.save(theirs)
        losses = [*halfway, *whole.take(2, STEPS)]
        counts: list[int] = []
        model = sharded.step.model
        sharded.step.mark = lambda _: counts.append(sum(p.grad is not None for p in sharded.step.clipped))
        found = sharded.take(0, 2)
        # optimizer, (forward, backward) x ACCUMULATE, optimizer: no gradient before the last backward pass is over
        everything, none = len(sharded.step.clipped), 2 * ACCUMULATE * [0]
        assert counts == [0, *none, everything, everything, *none, everything], counts
        sharded.step.mark = lambda _: None
        sharded.save(mine)
        found += sharded.take(2, STEPS)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(losses), rtol=0, atol=1e-5)
        values = sharded.values()
        close(values, whole.values())
        assert max(float((values[name] - start[name]).abs().max()) for name in start) > 1e-2  # it did learn

        again.load(mine)
        again.take(2, STEPS)
        same(again.values(), values)
        apart.load(mine)
        apart.take(2, STEPS)
        close(apart.values(), values)
        onwards.load(theirs)
        onwards.take(2, STEPS)
        close(onwards.values(), values)

        validation = Stream(corpus, Layout(length=32, pairs=False), rows=8, split="validation")
        scores = [held_out(each.step.model, validation.once()) for each in (whole, sharded)]
        assert abs(scores[0]["mlm_loss"] - scores[1]["mlm_loss"]) < 1e-5
        same(sharded.values(), values)  # scoring left the parts as they were
        fill(apart.step.model, model, keep=ranks.main)
        if ranks.main:
            same(dict(apart.step.model.named_parameters()), dict(gathered(dict(model.named_parameters()))))
        else:
            gathered(dict(model.named_parameters()), keep=False)
        held = [part(p) for p in model.parameters()] + [
            part(state[name]) for state in sharded.step.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
        ]
        total = 3 * sum(p.numel() for p in whole.step.model.parameters())
        gates = 2 * sum(p.numel() for p in sharded.gates.parameters()) if sharded.gates else 0
        elements = sum(p.numel() for p in held) - gates
        assert ranks.totals([elements]) == [total]
        assert elements < 0.6 * total
        if sharded.gates is not None:
            row = sharded.gates.row()
            rows = [torch.empty_like(row) for _ in range(WORLD)]
            dist.all_gather(rows, row)
            assert torch.equal(rows[0], rows[1])


def main(corpus_folder: str, folder: str) -> None:
    dist.init_process_group("gloo")
    ranks, corpus = Ranks.of_job(), Corpus(corpus_folder)
    compare(corpus, ranks, Path(folder), "eager", search=True)
    compare(corpus, ranks, Path(folder), "fast", search=False)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
