"""MPNet: BERT with relative positions, whose bias the encoder computes once for the heads of all layers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .family import Family, Heads


@dataclass
class KeptBias:
    """Forward pre-hook of a cut attention module: of the position bias `[rows, heads, n, n]` it takes its own heads."""

    heads: Heads

    def __call__(
        self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments, with less bias."""
        if "position_bias" in kwargs:
            return args, {**kwargs, "position_bias": kwargs["position_bias"][:, self.heads]}
        place = list(inspect.signature(type(attention).forward).parameters).index("position_bias") - 1
        return (*args[:place], args[place][:, self.heads], *args[place + 1 :]), kwargs


def _take_kept_bias(attentions: Sequence[nn.Module], heads: Sequence[Heads]) -> None:
    for attention, kept in zip(attentions, heads, strict=True):
        # By its name: a folder that was loaded by its own code has a class of its own.
        hooks: list[Any] = [h for h in attention._forward_pre_hooks.values() if type(h).__name__ == KeptBias.__name__]
        if hooks:  # of an earlier cut; heads are those of the whole model, as the bias is
            hooks[0].heads = kept
        else:
            attention.register_forward_pre_hook(KeptBias(kept), with_kwargs=True)


MPNET = Family(
    model_types=("mpnet",),
    layers="encoder.layer",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    output="attention.attn.o",
    up="intermediate.dense",
    down="output.dense",
    attention="attention.attn",
    head_count=("num_attention_heads",),
    head_width=("all_head_size",),
    settle=_take_kept_bias,
    after_padding=True,
    padded="its relative positions are those of the batch, not of the row",
)
