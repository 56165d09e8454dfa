"""Run a stock encoder on rows without padding, through its registered attention interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from ..anatomy import Refused, of
from ..anatomy.modes import evaluating
from . import blocks

NAME, COUNTED = "earlybert_ragged", "earlybert_counted"
"""Under which the attention is registered with `transformers`; and one that counts its calls, which steps do not: a
compiler would compile anew for every count."""

Head = Literal["first", "tokens", "rows"]
"""What a task head reads: the first token of each row, all tokens one by one, or padded rows."""
Kernel = Literal["varlen", "groups", "padded"]
"""How attention is computed: torch's variable-length kernel, rows of about one length together, SDPA on padded rows."""

HEADS: dict[str, Head] = {
    "ForSequenceClassification": "first",
    "ForMaskedLM": "tokens",
    "BertForPreTraining": "tokens",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "rows",
}


@dataclass
class Layout:
    """Where the rows of the batch in hand lie; read by the attention and by the unpacking hook."""

    kernel: Kernel = "groups"
    bounds: Tensor = field(default_factory=lambda: torch.empty(0))
    """int32 `[rows + 2]`, as `Packed.bounds`."""
    lengths: tuple[int, ...] = ()
    """Tokens of each row; for `groups` alone."""
    longest: int = 0
    blocks: dict[int, blocks.Blocks] = field(default_factory=dict)
    """By number of heads; made when a layer asks."""
    places: Tensor = field(default_factory=lambda: torch.empty(0))
    """For padded rows: the token at each place, int64 `[rows + 1, longest]`; padding points anywhere."""
    present: Tensor = field(default_factory=lambda: torch.empty(0))
    """Which places hold a token, bool `[rows + 1, longest]`; the first is always there, so that no row is empty."""
    row: Tensor = field(default_factory=lambda: torch.empty(0))
    """Row of each token, int64 `[tokens]`."""
    offset: Tensor = field(default_factory=lambda: torch.empty(0))
    """Place of each token in its row, int64 `[tokens]`; of free places, any."""


_layout = Layout()


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each row of a packed batch.

    Args:
        module: The layer's attention module.
        query: `[1, heads, tokens, head size]`.
        key: The same.
        value: The same.
        attention_mask: None; rows are told apart by the layout in hand.
        scaling: Of the scores; 1 / sqrt(head size) when not given.
        dropout: On attention probabilities. Only the padded kernel has it.

    Returns:
        `[1, tokens, heads, head size]`.
    """
    # squeeze, not [0]: the gradient of an index is a copy into zeros
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # [tokens, heads, head size]
    if _layout.kernel == "varlen":
        out = _varlen(q, k, v, scaling)
    elif _layout.kernel == "padded":
        out = _in_fp32(_padded, q, k, v, scaling, dropout)
    elif q.device.type == "cpu" and blocks.worth(_layout.lengths, _layout.longest, q.dtype):
        out = _blocks(q, k, v, scaling)
    else:
        out = _in_fp32(_groups, q, k, v, scaling)
    return out.unsqueeze(0), None


def no_varlen(head_size: int) -> str | None:
    """Why torch's variable-length attention, which is for CUDA and half precision, cannot be had; None where it can."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        return f"{error.name} is not installed; torch 2.11 or newer with CUDA has it."
    if "scale" not in inspect.signature(varlen_attn).parameters:
        return "this torch's varlen_attn takes no scale; torch 2.11 or newer has one that does."
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return "torch's varlen_attn is for GPUs of compute capability 8.0 or more."
    if head_size % 8 or head_size > 256:
        return f"torch's varlen_attn takes heads of 8, 16, 24, ... 256 features, and these have {head_size}."
    return None


def _varlen(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = _layout.bounds, _layout.longest
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling)
    assert isinstance(out, Tensor)
    return out


def _blocks(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    heads = q.shape[1]
    found = _layout.blocks.get(heads)
    if found is None:
        found = _layout.blocks[heads] = blocks.lay_out(_layout.lengths, heads)
    return blocks.attend(q, k, v, found, q.shape[-1] ** -0.5 if scaling is None else scaling)


def _groups(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    """SDPA on runs of rows of one length: no padding is computed, and sorted batches make few runs."""
    parts: list[Tensor] = []
    begin = 0
    for length, run in groupby(_layout.lengths):
        rows = len(list(run))
        end = begin + rows * length
        if length:
            q_, k_, v_ = (x[begin:end].view(rows, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
            out = F.scaled_dot_product_attention(q_, k_, v_, scale=scaling)
            parts.append(out.transpose(1, 2).reshape(end - begin, *q.shape[1:]))
        begin = end
    parts.append(v[begin:])  # free places, which nobody reads
    return torch.cat(parts)


def _in_fp32(kernel: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    """On a CPU, SDPA's backward pass in bf16 takes 2 to 20 times as long as in fp32 (torch 2.13, AVX-512)."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return kernel(q, k, v, *rest)
    with torch.autocast("cpu", enabled=False):
        return kernel(q.float(), k.float(), v.float(), *rest).to(q.dtype)


def _padded(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, dropout: float) -> Tensor:
    """SDPA on padded rows, with dropout: what the eager step computes."""
    q_, k_, v_ = (x[_layout.places].transpose(1, 2) for x in (q, k, v))  # [rows + 1, heads, longest, head size]
    mask = _layout.present[:, None, None, :]
    out = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return out.transpose(1, 2)[_layout.row, _layout.offset]


_calls: list[int] = []


def _counted(*args: Any, **settings: Any) -> tuple[Tensor, None]:
    _calls.append(1)
    return attention(*args, **settings)


AttentionInterface.register(NAME, attention)
AttentionInterface.register(COUNTED, _counted)
try:
    from transformers import AttentionMaskInterface

    for _name in (NAME, COUNTED):
        AttentionMaskInterface.register(_name, lambda *_, **__: None)
except ImportError:  # before the interface was public
    pass


class RaggedModel:
    """A stock model that can be made to take packed batches.

    Args:
        model: A supported model with a head of `HEADS`.

    Attributes:
        head: What the head reads.
        position_offset: Position of a row's first token.
        token_types: Whether the model takes `token_type_ids`.

    Raises:
        Refused: The model, or its head, cannot run without padding.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.anatomy = of(model)
        family = self.anatomy.family
        kind = type(model).__name__
        if family.padded:
            raise Refused(f"{kind} cannot run without padding: {family.padded}; it takes the eager step.")
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise Refused(
                f"{kind} cannot run without padding: gradient checkpointing is on, which computes layers again outside "
                "the packed forward pass; it takes the eager step."
            )
        self.head: Head | None = next((head for suffix, head in HEADS.items() if kind.endswith(suffix)), None)
        parameters = inspect.signature(model.forward).parameters
        if self.head is None or "position_ids" not in parameters:
            raise Refused(f"{kind} cannot run without padding; it takes the eager step.")
        self._refuse_own_head()
        self.token_types = "token_type_ids" in parameters
        self.position_offset = family.first_position(model.config)
        self.stack = model.get_submodule(self.anatomy.stack)
        base = getattr(model, str(model.base_model_prefix))
        self.pooler: nn.Module | None = getattr(base, "pooler", None)
        self._probe()

    def _refuse_own_head(self) -> None:
        """What a head reads is known of those of `transformers` alone; a person's own may pool over a row's tokens."""
        base = {id(module) for module in getattr(self.model, str(self.model.base_model_prefix)).modules()}
        parts = [module for module in self.model.modules() if id(module) not in base and module is not self.model]
        forward: Any = type(self.model).forward
        places = [forward.__module__, *(type(module).__module__ for module in parts)]
        if not all(place.split(".")[0] in ("torch", "transformers") for place in places):
            raise Refused(
                f"{type(self.model).__name__} cannot run without padding: its head is not one of transformers; "
                "it takes the eager step."
            )

    def _probe(self) -> None:
        """Two rows of two tokens, to see that every layer asks for the attention that keeps rows apart."""
        device = next(self.model.parameters()).device
        ids = torch.full((1, 4), 5, device=device)
        positions = torch.tensor([[0, 1, 0, 1]], device=device) + self.position_offset
        passes: list[int] = []
        outputs = [self.model.get_submodule(layer.output) for layer in self.anatomy.layers]
        hooks = [module.register_forward_hook(lambda *_: passes.append(1)) for module in outputs]
        _calls.clear()
        try:
            with evaluating(self.model), self.packed(COUNTED), torch.no_grad():
                bounds = torch.tensor([0, 2, 4, 4], dtype=torch.int32, device=device)
                set_layout("groups", bounds, 2, 4, lengths=(2, 2), places=self.head == "rows")
                self.model(input_ids=ids, position_ids=positions)
        finally:
            for hook in hooks:
                hook.remove()
        if len(_calls) != len(passes):
            raise Refused(
                f"{type(self.model).__name__} does not let its attention be replaced in this version of transformers; "
                "it takes the eager step."
            )

    @contextmanager
    def packed(self, attention: str = NAME) -> Iterator[nn.Module]:
        """The model, taking packed batches inside; outside it is the stock model."""
        config: Any = self.model.config
        before = config._attn_implementation
        config._attn_implementation = attention
        hooks = [self.stack.register_forward_hook(self._unpack)]
        if self.head == "tokens" and self.pooler is not None:
            hooks.append(self.pooler.register_forward_pre_hook(_first_tokens))
        try:
            yield self.model
        finally:
            config._attn_implementation = before
            for hook in hooks:
                hook.remove()

    def _unpack(self, _: nn.Module, __: Any, output: Any) -> Any:
        """What the head expects: `[rows, 1, hidden]`, `[1, tokens, hidden]` or `[rows, longest, hidden]`."""
        hidden = output.last_hidden_state[0]  # [tokens, hidden]
        if self.head == "first":
            output.last_hidden_state = _firsts(hidden)
        elif self.head == "rows":
            output.last_hidden_state = hidden[_layout.places[:-1]]
        return output


def _firsts(hidden: Tensor) -> Tensor:
    """First token of each row of `[tokens, hidden]`, as `[rows, 1, hidden]`."""
    first = _layout.bounds[:-2].long().clamp_max(hidden.shape[0] - 1)
    return hidden[first][:, None]


def _first_tokens(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A pooler beside a head that reads tokens sees rows."""
    return (_firsts(args[0][0]),)


def set_layout(
    kernel: Kernel, bounds: Tensor, longest: int, tokens: int, *, lengths: tuple[int, ...] = (), places: bool = False
) -> Tensor:
    """Say where the rows of the next batch lie.

    Args:
        kernel: How attention is to be computed.
        bounds: int32 `[rows + 2]`, on the model's device.
        longest: Length of a padded row.
        tokens: Places in the packed batch.
        lengths: Tokens of each row, for `groups`.
        places: Whether the head reads padded rows; the padded kernel does anyway.

    Returns:
        Which places of the rows hold a token, bool `[rows, longest]`; empty when nothing is padded.
    """
    _layout.kernel, _layout.bounds, _layout.longest, _layout.lengths = kernel, bounds, longest, lengths
    _layout.blocks = {}
    if not places and kernel != "padded":
        return torch.empty(0)
    starts, sizes = bounds[:-1].long(), (bounds[1:] - bounds[:-1]).long()
    offsets = torch.arange(longest, device=bounds.device)
    _layout.present = offsets < sizes.clamp_min(1)[:, None]
    _layout.places = (starts[:, None] + offsets).clamp_max(tokens - 1)
    numbers = torch.arange(tokens, device=bounds.device)
    _layout.row = torch.searchsorted(bounds[1:].long(), numbers, right=True)
    _layout.offset = (numbers - starts[_layout.row]).clamp_max(longest - 1)  # there may be more free places
    return _layout.present[:-1]
