"""T5's encoder, plain (1.0) and gated (1.1, Flan); the decoder stays whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .family import Family, Heads


@dataclass
class KeptBias:
    """In place of the `compute_bias` of a cut layer: its own heads of the bias that the first layer holds.

    Layers hand the bias on to the next one, which may keep other heads, so each computes its own.
    """

    first: Any
    heads: Heads

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """fp32 `[1, kept heads, queries, keys]`."""
        return type(self.first).compute_bias(self.first, *args, **kwargs)[:, self.heads]


def _own_bias(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: the bias of the layer before is not for this one."""
    return args, {**kwargs, "position_bias": None}


def _compute_own_bias(attentions: Sequence[Any], heads: Sequence[Heads]) -> None:
    for attention, kept in zip(attentions, heads, strict=True):
        cut_before = "compute_bias" in vars(attention)
        attention.compute_bias = KeptBias(attentions[0], kept)
        attention.has_relative_attention_bias = True
        if attention is not attentions[0]:
            # Whoever has the flag is expected to have the table. Past `nn.Module`, so that it is not saved again.
            object.__setattr__(attention, "relative_attention_bias", attentions[0].relative_attention_bias)
        if not cut_before:
            attention.register_forward_pre_hook(_own_bias, with_kwargs=True)


T5 = Family(
    model_types=("t5",),
    layers="encoder.block",
    query="layer.0.SelfAttention.q",
    key="layer.0.SelfAttention.k",
    value="layer.0.SelfAttention.v",
    output="layer.0.SelfAttention.o",
    up="layer.1.DenseReluDense.wi",
    down="layer.1.DenseReluDense.wo",
    attention="layer.0.SelfAttention",
    head_size="key_value_proj_dim",
    head_count=("n_heads",),
    head_width=("inner_dim",),
    settle=_compute_own_bias,
    decoder="decoder",
    padded="its relative positions are those of the batch, not of the row",
)

T5_GATED = replace(T5, gate="layer.1.DenseReluDense.wi_0", up="layer.1.DenseReluDense.wi_1")
