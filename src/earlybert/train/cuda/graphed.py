"""The whole step on a GPU as one CUDA graph: no padding, bf16 weights, one kernel for clip and AdamW.

fp32 parameters stay the truth. Forward and backward run on bf16 copies that the optimizer writes along; the
residual stream is bf16; query, key and value are one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...tasks.batches import Batch
from ..fast import RaggedStep
from ..lamb import Lamb
from ..pack import Packed, duplicate, pack, together
from .accumulation import Accumulation
from .copies import Copies
from .fused import Slot
from .fused_adamw import FusedAdamW
from .graphs import Graphs

TOKENS = 128
"""Packed batches are rounded up to this many tokens: a graph serves one size."""
LONGEST = (128, 256, 384, 512)
"""What the longest row is called: the attention kernel only needs an upper bound, and a graph serves one."""


@dataclass
class Captured:
    """One graph and the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    packed: Packed
    loss: Tensor
    addresses: list[Tensor]


class GraphedStep(RaggedStep):
    """`RaggedStep` for CUDA; the update is the same within bf16.

    A step of one micro-batch is one graph. Where there are more, and for LAMB, gradients go through fp32 totals
    (`Accumulation`).

    Args:
        graphs: Graphs held at most; the one unused longest goes. 0 captures none, and that runs on the CPU, too,
            where Triton interprets the kernels (`TRITON_INTERPRET=1`).
        compile: Let `torch.compile` fuse the element-wise work; costs tens of seconds once.
        *args: As `RaggedStep`.
        **kwargs: As `RaggedStep`.
    """

    summed = False
    """Whether gradients always go through fp32 totals, also those of one micro-batch."""

    def __init__(self, *args: Any, graphs: int = 24, compile: bool = False, exact: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, exact=exact, **kwargs)
        self.graphs = Graphs(graphs, self.device)
        self.rows = 0
        # Where nothing reaches a parameter, zeros for its gradient leave AdamW still, but not a trust ratio.
        self.summed = self.summed or isinstance(self.optimizer, Lamb)
        self._compile = compile
        self._run: Any = torch.compile(self.forward, dynamic=False) if compile else self.forward
        self.refresh()

    def refresh(self) -> None:
        """Read the parameters and the optimizer's state anew, after something else has changed them."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.copies = Copies(
            self.model, self.ragged, fuse=not self._compile, gates=self.gates, dtype=dtype, tied=self.summed
        )
        self.graphs.clear()
        self._accumulation: Accumulation | None = None
        self._fused: FusedAdamW | None = None
        if self.summed:
            return
        copied = {id(master) for master, *_ in self.copies.masters()}
        # What has a copy gets no gradient of its own: nothing that has one is tied to the embeddings here.
        self._slots = [slot for slot in self.sources() if slot.leaf is not slot.master or id(slot.master) not in copied]
        self._fused = FusedAdamW(self.optimizer, self._slots, self.max_grad_norm)
        self._addresses = self._blank_addresses(self._fused)

    def sources(self) -> list[Slot]:
        """Everywhere that gradients may arrive: at bf16 copies, and at the parameters themselves."""
        groups = {id(p): g for g, group in enumerate(self.optimizer.param_groups) for p in group["params"]}
        found = [Slot(m, leaf, at, groups[id(m)]) for m, leaf, at in self.copies.masters() if id(m) in groups]
        l1 = {} if self.gates is None else dict(zip(map(id, self.gates.parameters()), self.l1, strict=True))
        owned = [p for group in self.optimizer.param_groups for p in group["params"]]
        return [*found, *(Slot(p, p, 0, groups[id(p)], l1.get(id(p), 0.0)) for p in owned)]

    def lay_out(self, batch: Batch) -> Packed:
        """One micro-batch without padding, on the CPU, in a size that graphs are made for."""
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
        return replace(packed, inputs={**packed.inputs, **self.copies.orders(packed.inputs)})

    def move(self, packed: Packed) -> Packed:
        """Bring it to the device, by one copy."""
        return together(packed, self.device)

    def splits(self, prepared: Sequence[tuple[Packed, float]]) -> bool:
        """A graph has no inside."""
        return self.graphs.limit == 0

    def __call__(self, prepared: Sequence[tuple[Packed, float]]) -> Tensor:
        """As `EagerStep`; replays a graph where there is one for this size."""
        if self._fused is None or len(prepared) > 1:
            if self._accumulation is None:
                self._accumulation = Accumulation(self)
            return self._accumulation(prepared)
        self._fused.set_rates()
        packed = prepared[0][0]
        key = (packed.tokens, len(packed.bounds) - 2, packed.longest)
        captured = self.graphs.find(key, lambda: self._capture(packed))
        if captured is None:
            return self._uncaptured(prepared)
        captured.packed.take(packed)
        captured.graph.replay()
        return captured.loss.clone()

    def loss(self, batch: tuple[Packed, float]) -> Tensor:
        """Task loss of one packed micro-batch, scalar."""
        packed = batch[0]
        self.copies.draw_seeds()
        inputs = self.copies.take(packed.inputs)
        if self._compile:
            for name in ("input_ids", "position_ids", "token_type_ids"):
                if name in inputs:
                    torch._dynamo.mark_dynamic(inputs[name], 1)
        lengths = () if self.kernel == "varlen" else (*packed.lengths, packed.tokens - sum(packed.lengths))
        half = self.precision == "bf16"
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False)
        with self.ragged.packed(), self.copies.in_place(), autocast:
            return self._run(inputs, packed.bounds, packed.longest, lengths)

    def _uncaptured(self, prepared: Sequence[tuple[Packed, float]]) -> Tensor:
        assert self._fused is not None
        total = self.graphs.around(lambda: self._gradients(prepared[0]))
        self._fill_addresses(self._fused, self._addresses)
        self._update(self._fused, self._addresses)
        self._drop_gradients()
        return total

    def _gradients(self, batch: tuple[Packed, float]) -> Tensor:
        self._drop_gradients()
        self.copies.begin(batch[0].inputs)
        self.mark("forward")
        loss = self.loss(batch)
        self.mark("backward")
        loss.backward()
        self.copies.finish()
        self.mark("optimizer")
        for slot in self._slots:
            if slot.leaf.grad is None:  # not reached, like a pooler that no head reads
                slot.leaf.grad = torch.zeros_like(slot.leaf)
        return loss.detach().float()

    def _update(self, fused: FusedAdamW, addresses: Sequence[Tensor]) -> None:
        """Clip and update from the gradients at `addresses`; the L1 term of coefficients is part of it."""
        self.copies.resolve(addresses[-1])
        fused.step(addresses[:-1])
        self.copies.clear()

    def _blank_addresses(self, fused: FusedAdamW) -> list[Tensor]:
        return [*fused.blank_addresses(), self.copies.blank_addresses()]

    def _fill_addresses(self, fused: FusedAdamW, addresses: Sequence[Tensor]) -> None:
        fused.fill_addresses(addresses[:-1])
        self.copies.fill_addresses(addresses[-1])

    def _drop_gradients(self) -> None:
        for slot in self._slots:
            slot.leaf.grad = None

    def _capture(self, packed: Packed) -> Captured:
        fused = self._fused
        assert fused is not None
        mine, addresses = duplicate(packed), self._blank_addresses(fused)
        self.copies.clear()  # of a step that was broken off: the graph would do it at every replay

        def work() -> Tensor:
            loss = self._gradients((mine, 1))
            self._update(fused, addresses)
            return loss

        graph, loss = self.graphs.capture(work)
        self._fill_addresses(fused, addresses)
        self._drop_gradients()
        return Captured(graph, mine, loss, addresses)
