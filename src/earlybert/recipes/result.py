"""What finished runs of either kind say of themselves, and scores on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..cost import Size
from ..ticket import Ticket
from ..ticket.files import write_atomically
from ..train.loop import Done
from ..train.steplog import append, read_steps
from .display import display, say
from .run import RunFolder


def held(before: Size, after: Size) -> dict[str, Any]:
    """Bytes of parameters, gradients and optimizer state before and after the cut, for `metrics.json`."""
    return {"memory": {"before": asdict(before.memory), "after": asdict(after.memory)}}


def widths(ticket: Ticket) -> dict[str, Any]:
    """What a ticket keeps in each layer, and by what margin."""
    return {
        "heads_kept": [len(kept) for kept in ticket.heads],
        "neurons_kept": [len(kept) for kept in ticket.neurons],
        "margin": dict(ticket.drawn).get("margin"),
    }


def disk_bytes(folder: Path) -> int:
    """Size of the weights in a model folder, in bytes."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


class Evaluations:
    """Observer that scores the model on the way, into `evaluations.jsonl`. The last checkpoint counts all the same.

    Args:
        run: The folder, whose settings say how often.
        score: What is written.
        first: Optimizer steps done before.
        write: False only scores: a sharded model needs all processes for it.
    """

    def __init__(
        self, run: RunFolder[Any], score: Callable[[], dict[str, float]], first: int, *, write: bool = True
    ) -> None:
        self._every = run.config.eval_every
        self._score, self._run, self._write = score, run, write
        self._file = run.path / "evaluations.jsonl"
        if not write:
            return
        kept = [line for line in read_steps(self._file) if line["step"] <= first]
        write_atomically(self._file, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def __call__(self, done: Done) -> bool:
        """Score the model when it is time."""
        if done.step % self._every == 0:
            line = {"step": done.step, **self._score()}
            if not self._write:
                return False
            append(self._file, [line])
            display.emit("evaluation", **line)
            if self._run.tracker is not None:
                scores = {f"validation_{name}": value for name, value in line.items() if name != "step"}
                self._run.tracker.scalars(scores, done.step)
            if display.mode != "json":
                scores = ", ".join(f"{name} {value:.4f}" for name, value in line.items() if name != "step")
                say(f"step {done.step}: {scores}")
        return False
