"""bf16 copies of a model's weights, and fused forwards that compute with them, put into the model for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import GELUActivation

from ...anatomy import Layer
from ...tasks.batches import Batch
from ...ticket import Gates
from ..ragged import RaggedModel
from . import linears
from .coefficients import ScaledOutputs
from .embed import Embeddings
from .kernels import PROGRAMS, add_norm, bias_gelu, parts
from .sums import Sums


class Copies:
    """Copies of everything behind the embeddings, the fused forwards, and the gradients that these sum themselves.

    Args:
        model: fp32.
        ragged: The same model, able to run without padding.
        fuse: Use the fused forwards; else they are left to the compiler.
        gates: Coefficients on the model, taken into the fused forwards as far as its family allows; the others stay
            where they are.
        dtype: Of the copies.
        tied: Whether what is tied to the embeddings gets a copy, whose gradient is to be added to theirs.
    """

    def __init__(
        self,
        model: nn.Module,
        ragged: RaggedModel,
        *,
        fuse: bool,
        gates: Gates | None,
        dtype: torch.dtype,
        tied: bool = False,
    ) -> None:
        self._stack = ragged.stack
        self._dtype = dtype
        self._copies: dict[int, nn.Parameter] = {}
        self._swaps: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
        self._masters: list[tuple[nn.Parameter, Tensor, int]] = []
        self._forwards: list[tuple[nn.Module, Any]] = []
        self._sums = Sums()
        self._summed: list[tuple[Tensor, Tensor]] = []
        self.outputs: ScaledOutputs | None = None
        layers = ragged.anatomy.layers
        self._copy(model, {name for layer in layers for name in (layer.query, layer.key, layer.value)}, tied=tied)
        self.seeds = torch.zeros(2 * len(layers) + 1, dtype=torch.long, device=next(model.parameters()).device)
        self.embeddings: Embeddings | None = None
        if fuse and Embeddings.possible(model, tied=tied):
            block: Any = getattr(model, str(model.base_model_prefix)).embeddings
            self.embeddings = Embeddings(block, self.seeds, 2 * len(layers), self._sums, dtype)
            self._summed += self.embeddings.gradients
            self._forwards.append((block, self.embeddings.forward))
        if fuse and gates is not None:
            self._scale_outputs(model, layers, gates)
        neurons = torch.zeros_like(gates.neurons) if gates is not None else None
        for number, layer in enumerate(layers):
            pasts = (_Past(), _Past())
            if fuse:
                coefficients = (gates.neurons.detach()[number], neurons[number]) if neurons is not None else None  # pyright: ignore
                gelu = self._fuse_activation(model, layer, coefficients, pasts[1])
                gated = gates is not None
                self._fuse_residual(model, layer.output, 2 * number, pasts[0], gated=gated and self.outputs is None)
                self._fuse_residual(model, layer.down, 2 * number + 1, pasts[1], gated=gated and not gelu)
                if gelu and neurons is not None:
                    self._ungate(model.get_submodule(layer.down))
                    if number == 0:
                        self._summed.append((gates.neurons, neurons))  # pyright: ignore
            self._fuse_projection(model, layer, pasts[0] if fuse else None)

    def masters(self) -> list[tuple[nn.Parameter, Tensor, int]]:
        """Each trainable fp32 parameter with the leaf that stands for it and its place in that leaf."""
        return self._masters

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the copies inside."""
        with ExitStack() as after:
            for module, key, parameter, copy in self._swaps:
                module._parameters[key] = copy
                after.callback(module._parameters.__setitem__, key, parameter)
            for module, forward in self._forwards:
                before = vars(module).get("forward")
                module.forward = forward
                if before is None:
                    after.callback(delattr, module, "forward")
                else:
                    after.callback(setattr, module, "forward", before)
            hook = self._stack.register_forward_pre_hook(partial(_enter, self._dtype), with_kwargs=True)
            after.callback(hook.remove)
            yield

    def draw_seeds(self) -> None:
        """New dropout, by the device's random generator."""
        self.seeds.random_(2**31)

    def orders(self, inputs: Batch) -> Batch:
        """What a packed batch needs besides `inputs`, on the CPU; `take` takes it out again."""
        return {} if self.embeddings is None else self.embeddings.orders(inputs)

    def take(self, inputs: Batch) -> Batch:
        """What the model takes of a packed batch that is about to be computed."""
        return inputs if self.embeddings is None else self.embeddings.take(inputs)

    def clear(self) -> None:
        """Behind a use of the gradients, before the next backward pass: those that are kept here are set to zero."""
        if self.embeddings is not None:
            self.embeddings.clear()

    def begin(self, inputs: Batch) -> None:
        """Before a forward pass: the copies that coefficients scale are written anew.

        Args:
            inputs: Of the packed batch that comes.
        """
        if self.embeddings is not None:
            self.embeddings.begin([inputs])
        if self.outputs is not None:
            self.outputs.scale()

    def finish(self) -> None:
        """Give the leaves the gradients that the kernels have summed; after every backward pass."""
        if self._summed:
            self._sums.finish(add=False)
        for leaf, gradient in self._summed:
            leaf.grad = gradient
        if self.outputs is not None:
            self.outputs.heads.grad = self.outputs.gradient

    def blank_addresses(self) -> Tensor:
        """Room for the addresses of gradients that `resolve` reads."""
        return torch.zeros(0) if self.outputs is None else self.outputs.blank_addresses()

    def fill_addresses(self, addresses: Tensor) -> None:
        """Note where these gradients lie now."""
        if self.outputs is not None:
            self.outputs.fill_addresses(addresses)

    def resolve(self, addresses: Tensor) -> None:
        """Turn the gradients of scaled copies into those of the weights and of the coefficients; once behind `finish`.

        Args:
            addresses: Of the copies' gradients.
        """
        if self.outputs is not None:
            self.outputs.unscale(addresses)

    def _copy(self, model: nn.Module, fused: set[str], *, tied: bool) -> None:
        """Everything but the embeddings, and what becomes one linear below."""
        base = getattr(model, model.base_model_prefix)  # pyright: ignore[reportArgumentType]
        first = {id(parameter) for parameter in base.embeddings.parameters()}
        inside = {id(module) for module in base.embeddings.modules()}
        for name, module in model.named_modules():
            if name in fused or id(module) in inside:
                continue
            mine = [(key, p) for key, p in module.named_parameters(recurse=False) if tied or id(p) not in first]
            for key, parameter in mine:
                copy = self._copies.get(id(parameter))
                if copy is None:  # a bias that is tied to another has one copy
                    copy = nn.Parameter(parameter.detach().to(self._dtype, copy=True), parameter.requires_grad)
                    self._copies[id(parameter)] = copy
                    if parameter.requires_grad:
                        self._masters.append((parameter, copy, 0))
                self._swaps.append((module, key, parameter, copy))
            if isinstance(module, nn.LayerNorm) and mine:
                self._forwards.append((module, _norm(module, self._dtype)))

    def _gradient(self, leaf: Tensor) -> Tensor:
        """Where the sums write the gradient of a leaf."""
        gradient = torch.zeros_like(leaf)
        if leaf.requires_grad:
            self._summed.append((leaf, gradient))
        return gradient

    def _ungate(self, linear: nn.Module) -> None:
        self._forwards.append((linear, partial(type(linear).forward, linear)))

    def _scale_outputs(self, model: nn.Module, layers: tuple[Layer, ...], gates: Gates) -> None:
        outputs = [model.get_submodule(layer.output) for layer in layers]
        if not all(isinstance(output, nn.Linear) and output.weight.requires_grad for output in outputs):
            return
        weights = [output.get_parameter("weight") for output in outputs]
        self.outputs = ScaledOutputs(gates.heads, weights, [self._copies[id(weight)] for weight in weights])
        for output in outputs:
            self._ungate(output)

    def _fuse_residual(self, model: nn.Module, name: str, which: int, past: _Past, *, gated: bool) -> None:
        """Bias, dropout, residual and LayerNorm in one kernel, where a family allows it."""
        block: Any = model.get_submodule(name.rpartition(".")[0])
        if not all(hasattr(block, part) for part in ("dense", "dropout", "LayerNorm")) or block.dense.bias is None:
            return
        past.wanted = True
        vectors = (block.LayerNorm.weight, block.LayerNorm.bias, block.dense.bias)
        leaves = [self._copies[id(vector)] for vector in vectors]
        if gated:  # gates add the bias themselves; only two of the three sums are anybody's gradient
            gradients = [*(self._gradient(leaf) for leaf in leaves[:2]), torch.zeros_like(leaves[2])]
        else:
            gradients = [self._gradient(leaf) for leaf in leaves]
        into = self._sums.room(PROGRAMS, gradients)
        self._forwards.append((block, _residual(block, self.seeds, which, into, past, gated=gated)))

    def _fuse_activation(
        self, model: nn.Module, layer: Layer, coefficients: tuple[Tensor, Tensor] | None, past: _Past
    ) -> bool:
        """Bias and GELU in one kernel, with coefficients on neurons, where a family allows it."""
        block: Any = model.get_submodule(layer.up.rpartition(".")[0])
        if not isinstance(getattr(block, "intermediate_act_fn", None), GELUActivation) or block.dense.bias is None:
            return False
        bias = self._copies[id(block.dense.bias)]
        gradients = [self._gradient(bias), *(coefficients[1:] if coefficients is not None else ())]
        into = self._sums.room(parts(bias.numel()), gradients)
        self._forwards.append((block, _activation(block, coefficients[0] if coefficients else None, into, past)))
        return True

    def _fuse_projection(self, model: nn.Module, layer: Layer, past: _Past | None) -> None:
        """Query, key and value as one linear with one leaf for weights and one for biases."""
        modules = [model.get_submodule(name) for name in (layer.query, layer.key, layer.value)]
        leaves: list[Tensor] = []
        for name in ("weight", "bias"):
            masters = [module.get_parameter(name) for module in modules]
            leaf = torch.cat([master.detach() for master in masters]).to(self._dtype).requires_grad_()
            at = 0
            for master in masters:
                self._masters.append((master, leaf, at))
                at += master.numel()
            leaves.append(leaf)
        into = None
        if past is not None:
            into = self._sums.room(linears.parts(leaves[1].numel() // 3), [self._gradient(leaves[1])])
        shared = _Projection(leaves[0], leaves[1], into, past)
        for module, forward in zip(modules, (shared.query, shared.key, shared.value), strict=True):
            self._forwards.append((module, forward))


class _Past:
    """Hands a linear's input past the layers in between to the residual behind, where `wanted`."""

    def __init__(self) -> None:
        self.wanted = False
        self._pair: tuple[Tensor, Tensor] | None = None

    def put(self, x: Tensor, past: Tensor) -> None:
        """Send x on its way as `past`."""
        if self.wanted:
            self._pair = x, past

    def take(self, x: Tensor) -> Tensor:
        """What stands for x, or x itself."""
        pair, self._pair = self._pair, None
        return pair[1] if pair is not None and pair[0] is x else x


class _Projection:
    """Computes all three when asked for the query, and hands out the other two."""

    def __init__(self, weight: Tensor, bias: Tensor, into: Tensor | None, past: _Past | None) -> None:
        self.weight, self.bias, self.into, self.past = weight, bias, into, past
        self.rest: list[Tensor] = []

    def query(self, x: Tensor) -> Tensor:
        if self.past is None or self.into is None:
            q, k, v = F.linear(x, self.weight, self.bias).chunk(3, dim=-1)
        else:
            q, k, v, past = linears.projection(x, self.weight, self.bias, into=self.into)
            self.past.put(x, past)
        self.rest = [v, k]
        return q

    def key(self, _: Tensor) -> Tensor:
        return self.rest.pop()

    def value(self, _: Tensor) -> Tensor:
        return self.rest.pop()


def _residual(block: Any, seeds: Tensor, which: int, into: Tensor, past: _Past, *, gated: bool) -> Any:
    """The forward of a `BertSelfOutput` or `BertOutput`: dense, dropout, add, LayerNorm."""

    def forward(hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        dense, norm = block.dense, block.LayerNorm
        return add_norm(
            dense(hidden_states) if gated else F.linear(hidden_states, dense.weight),
            None if gated else dense.bias,
            past.take(input_tensor),
            norm.weight,
            norm.bias,
            p=block.dropout.p if block.training else 0.0,
            eps=norm.eps,
            seeds=seeds,
            which=which,
            into=into,
        )

    return forward


def _activation(block: Any, coefficients: Tensor | None, into: Tensor, past: _Past) -> Any:
    """The forward of a `BertIntermediate` with GELU: dense, activation."""

    def forward(hidden_states: Tensor) -> Tensor:
        y, beside = linears.linear(hidden_states, block.dense.weight)
        past.put(hidden_states, beside)
        return bias_gelu(y, block.dense.bias, coefficients, into=into)

    return forward


def _norm(module: nn.LayerNorm, dtype: torch.dtype) -> Any:
    """LayerNorm in and out of bf16, statistics in fp32; autocast would return fp32."""

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x.to(dtype), module.normalized_shape, module.weight, module.bias, module.eps)

    return forward


def _enter(
    dtype: torch.dtype, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hidden states enter the layers in the dtype of the copies."""
    if args:
        return (args[0].to(dtype), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].to(dtype)}
