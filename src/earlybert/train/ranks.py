"""The processes of a job, and the little they have to tell each other."""

from __future__ import annotations

import atexit
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..anatomy import Refused

BUCKET = 1 << 26
"""Bytes of gradients that are summed in one go."""
PATIENCE = timedelta(days=7)
"""How long a process waits for what the first one does alone."""
TALKING = re.compile("gloo|nccl|connection (closed|reset|refused)|broken pipe|socket", re.IGNORECASE)
"""In the messages of errors that come from reaching another process."""


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int = 0
    world: int = 1
    control: Any = None
    """Group for numbers on the host, so that the device is never waited for."""

    @classmethod
    def of_job(cls) -> Ranks:
        """As the launcher has set them up; alone without one."""
        if not _in_group():
            return ALONE
        # Some wait for the first one while it scores or evaluates; a partner that is gone is noticed otherwise.
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), control)

    @property
    def main(self) -> bool:
        """Whether this one writes and speaks for all."""
        return self.rank == 0

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Around computing that talks to the other processes on the way, and may fail by itself.

        Raises:
            Refused: A partner is gone.
        """
        with _together() if self.world > 1 else nullcontext():
            yield

    def totals(self, values: Sequence[float]) -> list[float]:
        """Numbers summed over all processes."""
        if self.world == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        with _together():
            dist.all_reduce(summed, group=self.control)
        return summed.tolist()

    def said(self, value: Any) -> Any:
        """What the first process holds, on all of them. JSON values only."""
        if self.world == 1:
            return value
        held = [value]
        with _together():
            dist.broadcast_object_list(held, src=0, group=self.control)
        return held[0]

    def wait(self) -> None:
        """Until all processes are here: behind it, what the first one has written is there for all."""
        if self.world > 1:
            with _together():
                dist.barrier(group=self.control)

    def agree(self, value: Any, what: str) -> None:
        """Wait for all processes, which have to find the same.

        Args:
            value: Found by this one. JSON values only.
            what: Names it in a refusal.

        Raises:
            Refused: Another process finds something else.
        """
        if self.world == 1:
            return
        found: list[Any] = [None] * self.world
        with _together():
            dist.all_gather_object(found, value, group=self.control)
        if any(each != found[0] for each in found):
            raise Refused(
                f"the processes of this job do not find the same {what}; data, model and run folder have to be the "
                "same for all of them, on storage that they share."
            )

    def reseed(self, *numbers: int) -> None:
        """Give every process but the first random numbers of its own, a function of these numbers.

        A checkpoint holds the random state of the first process; the others take up theirs anew after every step.
        """
        if not self.main:
            torch.manual_seed(int(np.random.SeedSequence([self.rank, *numbers]).generate_state(1, np.uint64)[0]))

    @torch.no_grad()
    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the bits of the first one, in place."""
        if self.world > 1:
            for tensor in tensors:
                with _together():
                    dist.broadcast(tensor, src=0)

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors of one dtype over all processes, in place; all then hold the same bits."""
        if self.world == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with _together():
                dist.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


ALONE = Ranks()
"""One process."""


@contextmanager
def group_left_at_exit() -> Iterator[None]:
    """Around what may make a process group: one that it made ends with the process, in order.

    The threads of a group that is still there when the interpreter goes can abort it.
    """
    ours = not _in_group()
    yield
    if ours and _in_group():
        atexit.register(lambda: dist.destroy_process_group() if _in_group() else None)


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, so many at a time that memory for their copies stays small."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= BUCKET:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


@contextmanager
def _together() -> Iterator[None]:
    """A partner that is gone becomes a sentence.

    Raises:
        Refused: As said.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, getattr(dist, "DistError", ())) or TALKING.search(str(error))):
            raise
        raise _gone(error) from error


def _gone(error: RuntimeError) -> Refused:
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return Refused(
        f"another process of the job has ended or cannot be reached ({reason.rstrip('.')}); start the job again "
        "with --resume."
    )
