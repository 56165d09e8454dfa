"""The whole step on a GPU as one CUDA graph: no padding, bf16 weights, one kernel for clip and AdamW.

A step of several micro-batches is a graph for each of them, and the update.

fp32 parameters stay the truth. Forward and backward run on bf16 copies that the optimizer writes along; the
residual stream is bf16; query, key and value are one matrix product.
"""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..tasks.batches import Batch
from ..ticket.memory import out_of_memory
from .copies import Copies
from .fast import RaggedStep
from .fused import FusedAdamW, Slot
from .pack import Packed, duplicate, pack, together

log = logging.getLogger("earlybert")

TOKENS = 128
"""Packed batches are rounded up to this many tokens: a graph serves one size."""
LONGEST = (128, 256, 384, 512)
"""What the longest row is called: the attention kernel only needs an upper bound, and a graph serves one."""

Key = tuple[int, int, int, bool]
"""Tokens, rows, longest row; whether it is a part of a step."""


@dataclass
class Captured:
    """One graph and the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    packed: Packed
    loss: Tensor
    addresses: list[Tensor]


class GraphedStep(RaggedStep):
    """`RaggedStep` for CUDA; the update is the same within bf16.

    Args:
        graphs: Graphs held at most; the one unused longest goes. 0 captures none, and that runs on the CPU, too,
            where Triton interprets the kernels (`TRITON_INTERPRET=1`).
        compile: Let `torch.compile` fuse the element-wise work; costs tens of seconds once.
        *args: As `RaggedStep`.
        **kwargs: As `RaggedStep`.
    """

    def __init__(self, *args: Any, graphs: int = 24, compile: bool = False, exact: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, exact=exact, **kwargs)
        if not exact and self.device.type == "cuda":  # elsewhere nothing but tests run it, and they have no such kernel
            self.kernel = "varlen"
        self.limit = graphs
        self.rows = 0
        self._share = torch.ones((), device=self.device)
        self._pool: Any = None
        self._compile = compile
        self._run: Any = torch.compile(self.forward, dynamic=False) if compile else self.forward
        self.refresh()

    def refresh(self) -> None:
        """Read the parameters and the optimizer's state anew, after something else has changed them."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self._copies = Copies(self.model, self.ragged, fuse=not self._compile, gates=self.gates, dtype=dtype)
        groups = {id(p): g for g, group in enumerate(self.optimizer.param_groups) for p in group["params"]}
        self._slots = [Slot(m, leaf, at, groups[id(m)]) for m, leaf, at in self._copies.masters() if id(m) in groups]
        known = {id(slot.master) for slot in self._slots}
        l1 = {} if self.gates is None else dict(zip(map(id, self.gates.parameters()), self.l1, strict=True))
        self._slots += [
            Slot(p, p, 0, g, l1.get(id(p), 0.0))
            for g, group in enumerate(self.optimizer.param_groups)
            for p in group["params"]
            if id(p) not in known
        ]
        self._fused = FusedAdamW(self.optimizer, self._slots, self.max_grad_norm)
        self._addresses = self._blank_addresses()
        self._kept: _Kept | None = None
        self._graphs: OrderedDict[Key, Captured] = OrderedDict()
        self._seen: set[Key] = set()

    def pack(self, batch: Batch) -> Packed:
        """One micro-batch without padding, on the device, in a size that graphs are made for."""
        self.rows = max(self.rows, len(batch["input_ids"]))
        whole = batch.get("labels", batch["input_ids"]).is_floating_point()  # no value is ignored in a regression
        longest = int(batch["attention_mask"].sum(1).max())
        packed = pack(
            batch,
            position_offset=self.ragged.position_offset,
            token_types=self.ragged.token_types,
            multiple=TOKENS,
            rows=None if whole else self.rows,
            longest=next((size for size in LONGEST if size >= max(longest, TOKENS - 1)), longest),
        )
        orders = {} if self._copies.embeddings is None else self._copies.embeddings.orders(packed.inputs)
        return together(replace(packed, inputs={**packed.inputs, **orders}), self.device)

    def splits(self, prepared: Sequence[tuple[Packed, int]]) -> bool:
        """A graph has no inside."""
        return self.limit == 0

    def __call__(self, prepared: Sequence[tuple[Packed, int]]) -> Tensor:
        """As `EagerStep`; replays graphs where there are some for these sizes."""
        self._fused.set_rates()
        if len(prepared) > 1:
            return self._accumulated(prepared)
        packed = prepared[0][0]
        captured = self._graph_of(packed, part=False)
        if captured is not None:
            return self._replay(captured, packed)
        total = self._gradients(packed)
        self._fill_addresses(self._addresses)
        self._update(self._addresses)
        self._drop_gradients()
        return total

    def _graph_of(self, packed: Packed, *, part: bool) -> Captured | None:
        """The graph of a step, or of a micro-batch, of this size; None until one comes the second time."""
        key = (packed.tokens, len(packed.bounds) - 2, packed.longest, part)
        if self.limit == 0:
            return None
        if key not in self._graphs:
            if key not in self._seen:  # the first is taken without a graph: that warms everything up
                self._seen.add(key)
                return None
            try:
                self._capture(key, packed)
            except RuntimeError as error:
                self._give_up_graphs(error)
                return None
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _replay(self, captured: Captured, packed: Packed) -> Tensor:
        assert captured.packed.buffer is not None
        assert packed.buffer is not None
        captured.packed.buffer.copy_(packed.buffer)
        captured.graph.replay()
        return captured.loss.clone()

    def _give_up_graphs(self, error: RuntimeError) -> None:
        """Go on without, and say why; what graphs held is free again."""
        self.limit = 0
        self._graphs.clear()
        self._pool = None
        why = str(error).splitlines()[0]
        if out_of_memory(error):
            why = "there is no memory for another one. Fewer tokens a batch would leave some."
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        log.warning("CUDA graphs are off, steps will be slower: %s", why)

    def loss(self, batch: tuple[Packed, int]) -> Tensor:
        """Task loss of one packed micro-batch, scalar."""
        packed = batch[0]
        if self._compile:
            for name in ("input_ids", "position_ids", "token_type_ids"):
                if name in packed.inputs:
                    torch._dynamo.mark_dynamic(packed.inputs[name], 1)
        lengths = () if self.kernel == "varlen" else (*packed.lengths, packed.tokens - sum(packed.lengths))
        half = self.precision == "bf16"
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False)
        with self.ragged.packed(), self._copies.in_place(), autocast:
            return self._run(packed.inputs, packed.bounds, packed.longest, lengths)

    def forward(self, inputs: Batch, bounds: Tensor, longest: int, lengths: tuple[int, ...]) -> Tensor:
        """As `RaggedStep`."""
        if self._copies.embeddings is not None:
            inputs = self._copies.embeddings.take(inputs)
        return super().forward(inputs, bounds, longest, lengths)

    def _gradients(self, packed: Packed) -> Tensor:
        """Loss and gradients of a step of one micro-batch; gradients lie where they come to lie."""
        self._begin([packed])
        self._drop_gradients()
        loss = self._part(packed)
        for slot in self._slots:
            if slot.leaf.grad is None:  # not reached, like a pooler that no head reads
                slot.leaf.grad = torch.zeros_like(slot.leaf)
        return loss

    def _accumulated(self, prepared: Sequence[tuple[Packed, int]]) -> Tensor:
        """A step of several micro-batches: a graph for each, adding to gradients that stay where they are."""
        self._begin([packed for packed, _ in prepared])
        if self._kept is None:
            self._kept = _Kept(self._slots, self._copies.summed())
        self._kept.attach()
        total: Tensor | None = None
        for (packed, _), share in zip(prepared, self.shares(prepared), strict=True):
            self._share.fill_(share)
            captured = self._graph_of(packed, part=True)
            loss = self._part(packed, self._share) if captured is None else self._replay(captured, packed)
            total = loss if total is None else total + loss
        if self._kept.addresses is None:
            self._kept.addresses = self._blank_addresses()
            self._fill_addresses(self._kept.addresses)
        self._update(self._kept.addresses)
        assert total is not None
        return total

    def _begin(self, batches: Sequence[Packed]) -> None:
        """What comes before the first micro-batch of a step."""
        if self._copies.embeddings is not None:
            self._copies.embeddings.begin([packed.inputs for packed in batches])
        if self._copies.outputs is not None:
            self._copies.outputs.scale()

    def _part(self, packed: Packed, share: Tensor | None = None) -> Tensor:
        """Loss and gradients of one micro-batch; with a share of the step's loss, added to what is there."""
        self.mark("forward")
        self._copies.draw_seeds()
        loss = self.loss((packed, 1))
        if share is not None:
            loss = loss * share
        self.mark("backward")
        loss.backward()
        self._copies.finish(add=share is not None)
        self.mark("optimizer")
        return loss.detach().float()

    def _update(self, addresses: Sequence[Tensor]) -> None:
        """Clip and update from the gradients at `addresses`; the L1 term of coefficients is part of it."""
        if self._copies.outputs is not None:
            self._copies.outputs.unscale(addresses[-1])
        self._fused.step(addresses[: len(self._fused.tables)])
        if self._copies.embeddings is not None:
            self._copies.embeddings.clear()

    def _blank_addresses(self) -> list[Tensor]:
        outputs = self._copies.outputs
        return [*self._fused.blank_addresses(), *([] if outputs is None else [outputs.blank_addresses()])]

    def _fill_addresses(self, addresses: Sequence[Tensor]) -> None:
        self._fused.fill_addresses(addresses[: len(self._fused.tables)])
        if self._copies.outputs is not None:
            self._copies.outputs.fill_addresses(addresses[-1])

    def _drop_gradients(self) -> None:
        for slot in self._slots:
            slot.leaf.grad = None

    def _capture(self, key: Key, packed: Packed) -> None:
        mine, part = duplicate(packed), key[3]
        addresses = [] if part else self._blank_addresses()

        def body() -> Tensor:
            if part:
                return self._part(mine, self._share)
            loss = self._gradients(mine)
            self._update(addresses)
            return loss

        graph, loss = self._record(body)
        if not part:
            self._fill_addresses(addresses)
            self._drop_gradients()
        self._graphs[key] = Captured(graph, mine, loss, addresses)
        if len(self._graphs) > self.limit:
            self._graphs.popitem(last=False)

    def _record(self, body: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Launches of `body` as a graph, not run yet, and what it will return."""
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with _undisturbed(self.device), torch.cuda.graph(graph, pool=self._pool):
            loss = body()
        return graph, loss


class _Kept:
    """Gradients that stay where they are, for micro-batches to be added to.

    Args:
        slots: All parameters of the step.
        summed: Leaves whose gradients the kernels keep and sum already, and whether these must be set to zero.
    """

    def __init__(self, slots: Sequence[Slot], summed: Sequence[tuple[Tensor, Tensor, bool]]) -> None:
        known = {id(leaf) for leaf, _, _ in summed}
        leaves = {id(slot.leaf): slot.leaf for slot in slots if id(slot.leaf) not in known}
        self._pairs = [(leaf, torch.zeros_like(leaf)) for leaf in leaves.values()]
        zeroed = [*(grad for _, grad in self._pairs), *(grad for _, grad, zero in summed if zero)]
        self._zeroed = [[grad for grad in zeroed if grad.dtype == dtype] for dtype in {grad.dtype for grad in zeroed}]
        self._pairs += [(leaf, grad) for leaf, grad, _ in summed]
        self.addresses: list[Tensor] | None = None

    def attach(self) -> None:
        """Zero, as the gradients of all leaves."""
        for alike in self._zeroed:  # one launch each
            torch._foreach_zero_(alike)  # pyright: ignore[reportPrivateImportUsage]
        for leaf, grad in self._pairs:
            leaf.grad = grad


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
