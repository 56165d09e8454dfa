"""CUDA graphs that share one pool of memory: captured when a key is met again, replayed, at most so many."""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from ...ticket.memory import out_of_memory

log = logging.getLogger("earlybert")

T = TypeVar("T")


class Graphs:
    """What was captured, by key.

    Args:
        limit: Held at most; the one unused longest goes. 0 captures none.
        device: A CUDA device, if any are to be captured.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        self.limit, self.device = limit, device
        self.seen: set[Hashable] = set()
        """Keys that were met once."""
        self._held: OrderedDict[Hashable, Any] = OrderedDict()
        self._pool: Any = None
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._held)

    def find(self, key: Hashable, make: Callable[[], T]) -> T | None:
        """What `make` captures for a key.

        None the first time, so that the work is done once without a graph, which warms everything up; and None where
        nothing is captured. A capture that fails turns graphs off, with a line that says so.

        Args:
            key: All that the work depends on besides the content of tensors.
            make: Captures; called when there is nothing for the key.
        """
        if self.limit == 0:
            return None
        if key not in self._held:
            if key not in self.seen:
                self.seen.add(key)
                return None
            try:
                self._held[key] = make()
            except RuntimeError as error:
                self._give_up(error)
                return None
            if len(self._held) > self.limit:
                self._held.popitem(last=False)
                self._dropped += 1
                if self._dropped == self.limit:
                    log.warning(
                        "batches come in more sizes than the %d CUDA graphs that are held; capturing graphs again and "
                        "again makes steps slower.",
                        self.limit,
                    )
        self._held.move_to_end(key)
        return self._held[key]

    def capture(self, work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        """Work as a graph, not done yet, and what it returns: tensors that a replay fills."""
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Other threads may ask CUDA for pinned memory meanwhile, as that of a DataLoader does.
        alone = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        with _undisturbed(self.device), alone:
            found = work()
        return graph, found

    def around(self, work: Callable[[], T]) -> T:
        """Work that no graph does; where it finds no memory beside what graphs hold, they go and it is done again.

        Args:
            work: May be begun twice.
        """
        try:
            return work()
        except RuntimeError as error:
            if not (self._held and out_of_memory(error)):
                raise
            self._give_up(error)
        return work()

    def _give_up(self, error: RuntimeError) -> None:
        """Go on without, and say why; what graphs held is free again."""
        self.limit = 0
        self.clear()
        why = str(error).splitlines()[0]
        if out_of_memory(error):
            why = "there is no memory for them. Fewer tokens a batch would leave some."
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        log.warning("CUDA graphs are off, steps will be slower: %s", why)

    def clear(self) -> None:
        """Let go of all; keys count as new again."""
        self._held.clear()
        self.seen.clear()
        self._pool = None  # one whose graphs are gone may not be captured into


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Nothing is freed during a capture, and a capture that fails leaves a random generator that works."""
    before = torch.cuda.get_rng_state(device)
    gc.collect()
    gc.disable()
    torch.cuda.synchronize(device)
    try:
        yield
    except RuntimeError:
        fresh = torch.Generator(device=device)
        torch.cuda.default_generators[device.index or 0].graphsafe_set_state(fresh.graphsafe_get_state())
        torch.cuda.set_rng_state(before, device)
        raise
    finally:
        gc.enable()
