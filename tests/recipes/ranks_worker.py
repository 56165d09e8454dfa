"""One process of a job of earlybert, which also writes down what it had and what it saw.

python -m tests.recipes.ranks_worker NOTES ARGUMENTS OF EARLYBERT...
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from earlybert.cli import main
from earlybert.data.stream import Stream
from earlybert.recipes.finetuning import stages as finetuning
from earlybert.recipes.pretraining import stages
from earlybert.train.sharded import part

RANK = "OF-THIS-RANK"
"""In an argument: the number of this process."""


def run(notes: Path, arguments: list[str]) -> int:
    torch.set_num_threads(1)
    models: list[Any] = []
    tickets: list[Any] = []
    seen: list[tuple[int, list[Any]]] = []
    scores: list[torch.Tensor] = []
    real_build, real_from, real_places = stages.build, stages.Ticket.from_dict, Stream.places
    real_collect = stages.collect

    def build(engine: Any, model: Any, *rest: Any, **options: Any) -> Any:
        models.append(model)
        return real_build(engine, model, *rest, **options)

    def from_dict(entry: Any, *rest: Any) -> Any:
        tickets.append(entry)
        return real_from(entry, *rest)

    def collect(step: Any, *rest: Any, **options: Any) -> Any:
        scores.append(step.gates.row().clone())
        return real_collect(step, *rest, **options)

    def places(self: Stream, position: int, count: int) -> Any:
        found = real_places(self, position, count)
        seen.append((self.layout.length, found))
        return found

    stages.build = finetuning.build = build  # pyright: ignore
    stages.Ticket.from_dict = from_dict  # pyright: ignore
    stages.collect = collect  # pyright: ignore
    Stream.places = places  # pyright: ignore
    code = main([word.replace(RANK, os.environ.get("RANK", "0")) for word in arguments])
    # Of a sharded model this is the part of this process.
    weights = {name: part(value).clone() for name, value in models[-1].named_parameters()} if models else {}
    about = {"weights": weights, "tickets": tickets[:1], "seen": seen, "scores": scores}
    torch.save(about, notes / f"rank-{os.environ.get('RANK', '0')}.pt")
    return code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
