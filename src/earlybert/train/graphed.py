"""The whole step on a GPU as one CUDA graph: no padding, bf16 weights, one kernel for clip and AdamW.

fp32 parameters stay the truth. Forward and backward run on bf16 copies that the optimizer writes along; the
residual stream is bf16; query, key and value are one matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import GELUActivation

from ..anatomy import Layer
from ..tasks.batches import Batch
from .accumulation import Accumulation
from .fast import RaggedStep
from .fused import FusedAdamW, Slot
from .graphs import Graphs
from .kernels import add_norm, bias_gelu
from .lamb import Lamb
from .pack import Packed, pack
from .step import to_device

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

    A step of one micro-batch is one graph. Where there are more, and for LAMB, gradients are summed in fp32 first
    (`Accumulation`).

    Args:
        graphs: Graphs held at most; the one unused longest goes. 0 captures none, and that runs on the CPU, too,
            where Triton interprets the kernels (`TRITON_INTERPRET=1`).
        compile: Let `torch.compile` fuse the element-wise work; costs tens of seconds once.
        *args: As `RaggedStep`.
        **kwargs: As `RaggedStep`.
    """

    summed = False
    """Whether gradients always go through sums, also those of one micro-batch."""

    def __init__(self, *args: Any, graphs: int = 24, compile: bool = False, exact: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, exact=exact, **kwargs)
        if not exact and self.device.type == "cuda":  # elsewhere nothing but tests run it, and they have no such kernel
            self.kernel = "varlen"
        self.graphs = Graphs(graphs, self.device)
        self.rows = 0
        # Where nothing reaches a parameter, zeros for its gradient leave AdamW still, but not a trust ratio.
        self.summed = self.summed or isinstance(self.optimizer, Lamb)
        self._compile = compile
        self._run: Any = torch.compile(self.forward, dynamic=False) if compile else self.forward
        self.refresh()

    def refresh(self) -> None:
        """Read the parameters and the optimizer's state anew, after something else has changed them."""
        self._copies = _Copies(self.model, self.ragged, fuse=not self._compile, tied=self.summed)
        self.graphs.clear()
        self._accumulation: Accumulation | None = None
        self._fused: FusedAdamW | None = None
        if self.summed:
            return
        copied = {id(master) for master, *_ in self._copies.masters()}
        # What has a copy gets no gradient of its own: nothing that has one is tied to the embeddings here.
        self._slots = [slot for slot in self.sources() if slot.leaf is not slot.master or id(slot.master) not in copied]
        self._fused = FusedAdamW(self.optimizer, self._slots, self.max_grad_norm)
        self._addresses = self._fused.blank_addresses()

    def sources(self) -> list[Slot]:
        """Everywhere that gradients may arrive: at bf16 copies, and at the parameters themselves."""
        groups = {id(p): g for g, group in enumerate(self.optimizer.param_groups) for p in group["params"]}
        found = [Slot(m, leaf, at, groups[id(m)]) for m, leaf, at in self._copies.masters() if id(m) in groups]
        owned = [p for group in self.optimizer.param_groups for p in group["params"]]
        return [*found, *(Slot(p, p, 0, groups[id(p)]) for p in owned)]

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
        inputs = to_device(packed.inputs, self.device, pin=True)
        bounds = to_device({"bounds": packed.bounds}, self.device, pin=True)["bounds"]
        return Packed(inputs, bounds, packed.lengths, packed.longest)

    def splits(self, prepared: Sequence[tuple[Packed, int]]) -> bool:
        """A graph has no inside."""
        return self.graphs.limit == 0

    def __call__(self, prepared: Sequence[tuple[Packed, int]]) -> Tensor:
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

    def loss(self, batch: tuple[Packed, int]) -> Tensor:
        """Task loss of one packed micro-batch, scalar."""
        packed = batch[0]
        self._copies.draw_seeds()
        if self._compile:
            for name in ("input_ids", "position_ids", "token_type_ids"):
                if name in packed.inputs:
                    torch._dynamo.mark_dynamic(packed.inputs[name], 1)
        lengths = () if self.kernel == "varlen" else (*packed.lengths, packed.tokens - sum(packed.lengths))
        autocast = torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        with self.ragged.packed(), self._copies.in_place(), autocast:
            return self._run(packed.inputs, packed.bounds, packed.longest, lengths)

    def _uncaptured(self, prepared: Sequence[tuple[Packed, int]]) -> Tensor:
        assert self._fused is not None
        total = self._gradients(prepared[0])
        self._fused.fill_addresses(self._addresses)
        self._fused.step(self._addresses)
        self._drop_gradients()
        return total

    def _gradients(self, batch: tuple[Packed, int]) -> Tensor:
        self._drop_gradients()
        self.mark("forward")
        loss = self.loss(batch)
        self.mark("backward")
        loss.backward()
        self.mark("optimizer")
        for slot in self._slots:
            if slot.leaf.grad is None:  # not reached, like a pooler that no head reads
                slot.leaf.grad = torch.zeros_like(slot.leaf)
        if self.gates is not None:
            self.gates.add_l1(self.l1)
        return loss.detach().float()

    def _drop_gradients(self) -> None:
        for slot in self._slots:
            slot.leaf.grad = None

    def _capture(self, packed: Packed) -> Captured:
        fused = self._fused
        assert fused is not None
        mine, addresses = packed.clone(), fused.blank_addresses()

        def work() -> Tensor:
            loss = self._gradients((mine, 1))
            fused.step(addresses)
            return loss

        graph, loss = self.graphs.capture(work)
        fused.fill_addresses(addresses)
        self._drop_gradients()
        return Captured(graph, mine, loss, addresses)


class _Copies:
    """bf16 copies of everything behind the embeddings, and how to put them into the model for a moment.

    Args:
        model: Its parameters are copied.
        ragged: Of the model.
        fuse: Whether element-wise work is done by kernels.
        tied: Whether what is tied to the embeddings gets a copy, whose gradient is to be added to theirs.
    """

    def __init__(self, model: nn.Module, ragged: Any, *, fuse: bool, tied: bool) -> None:
        self._stack = ragged.stack
        self._swaps: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
        self._masters: list[tuple[nn.Parameter, Tensor, int]] = []
        self._forwards: list[tuple[nn.Module, Any]] = []
        base = getattr(model, model.base_model_prefix)  # pyright: ignore[reportArgumentType]
        first = {id(parameter) for parameter in base.embeddings.parameters()}
        inside = {id(module) for module in base.embeddings.modules()}
        copies: dict[int, nn.Parameter] = {}  # a parameter in two places is one
        fused = {name for layer in ragged.anatomy.layers for name in (layer.query, layer.key, layer.value)}
        for name, module in model.named_modules():
            if name in fused:
                continue
            if id(module) in inside:
                continue
            mine = [(key, p) for key, p in module.named_parameters(recurse=False) if tied or id(p) not in first]
            for key, parameter in mine:
                copy = copies.get(id(parameter))
                if copy is None:
                    copy = nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=parameter.requires_grad)
                    copies[id(parameter)] = copy
                    if parameter.requires_grad:
                        self._masters.append((parameter, copy, 0))
                self._swaps.append((module, key, parameter, copy))
            if isinstance(module, nn.LayerNorm) and mine:
                self._forwards.append((module, _norm(module)))
        self.seeds = torch.zeros(
            2 * len(ragged.anatomy.layers), dtype=torch.long, device=next(model.parameters()).device
        )
        if fuse:  # else it is left to the compiler
            for number, layer in enumerate(ragged.anatomy.layers):
                self._fuse_elementwise(model, layer, number)
        for layer in ragged.anatomy.layers:
            self._fuse(*(model.get_submodule(name) for name in (layer.query, layer.key, layer.value)))

    def masters(self) -> list[tuple[nn.Parameter, Tensor, int]]:
        """Each trainable fp32 parameter with the bf16 leaf that stands for it and its place in that leaf."""
        return self._masters

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the copies inside."""
        with ExitStack() as after:
            for module, key, parameter, copy in self._swaps:
                module._parameters[key] = copy
                after.callback(module._parameters.__setitem__, key, parameter)
            for module, forward in self._forwards:
                module.forward = forward
                after.callback(delattr, module, "forward")
            hook = self._stack.register_forward_pre_hook(_half, with_kwargs=True)
            after.callback(hook.remove)
            yield

    def draw_seeds(self) -> None:
        """New dropout, by the device's random generator."""
        self.seeds.random_(2**31)

    def _fuse_elementwise(self, model: nn.Module, layer: Layer, number: int) -> None:
        """Bias, dropout, residual and LayerNorm in one kernel, bias and GELU in another, where a family allows it."""
        for place, name in enumerate((layer.output, layer.down)):
            block: Any = model.get_submodule(name.rpartition(".")[0])
            if all(hasattr(block, part) for part in ("dense", "dropout", "LayerNorm")):
                self._forwards.append((block, _residual(block, self.seeds, 2 * number + place)))
        block = model.get_submodule(layer.up.rpartition(".")[0])
        if isinstance(getattr(block, "intermediate_act_fn", None), GELUActivation):
            self._forwards.append((block, _activation(block)))

    def _fuse(self, query: nn.Module, key: nn.Module, value: nn.Module) -> None:
        """Query, key and value as one linear with one leaf for weights and one for biases."""
        parts = (query, key, value)
        leaves: list[Tensor | None] = []
        for name in ("weight", "bias"):
            masters = [part.get_parameter(name) for part in parts]
            leaf = torch.cat([master.detach() for master in masters]).to(torch.bfloat16).requires_grad_()
            at = 0
            for master in masters:
                self._masters.append((master, leaf, at))
                at += master.numel()
            leaves.append(leaf)
        shared = _Projection(leaves[0], leaves[1], query.get_parameter("weight").shape[0])
        for part, forward in zip(parts, (shared.query, shared.key, shared.value), strict=True):
            self._forwards.append((part, forward))


class _Projection:
    """Computes all three when asked for the query, and hands out the other two."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None, width: int) -> None:
        assert weight is not None
        self.weight, self.bias, self.width = weight, bias, width
        self.rest: list[Tensor] = []

    def query(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.weight, self.bias).split(self.width, dim=-1)
        self.rest = [v, k]
        return q

    def key(self, _: Tensor) -> Tensor:
        return self.rest.pop()

    def value(self, _: Tensor) -> Tensor:
        return self.rest.pop()


def _residual(block: Any, seeds: Tensor, which: int) -> Any:
    """The forward of a `BertSelfOutput` or `BertOutput`: dense, dropout, add, LayerNorm."""

    def forward(hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        dense, norm = block.dense, block.LayerNorm
        gated = "forward" in vars(dense)  # gates add the bias themselves
        y = dense(hidden_states) if gated else F.linear(hidden_states, dense.weight)
        p = block.dropout.p if block.training else 0.0
        return add_norm(
            y,
            None if gated else dense.bias,
            input_tensor,
            norm.weight,
            norm.bias,
            p=p,
            eps=norm.eps,
            seeds=seeds,
            which=which,
        )

    return forward


def _activation(block: Any) -> Any:
    """The forward of a `BertIntermediate` with GELU: dense, activation."""

    def forward(hidden_states: Tensor) -> Tensor:
        return bias_gelu(F.linear(hidden_states, block.dense.weight), block.dense.bias)

    return forward


def _norm(module: nn.LayerNorm) -> Any:
    """LayerNorm in and out of bf16, statistics in fp32; autocast would return fp32."""

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x.to(torch.bfloat16), module.normalized_shape, module.weight, module.bias, module.eps)

    return forward


def _half(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hidden states enter the layers in bf16."""
    if args:
        return (args[0].to(torch.bfloat16), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].to(torch.bfloat16)}
