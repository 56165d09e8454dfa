"""Cut a ticket out of a model: the same classes with smaller matrices (Sec. 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..anatomy import Anatomy, Blocks, Refused, linear, of, places
from ..anatomy.probe import two_rows
from .exact import exact_copy, full_precision
from .gates import expand_heads
from .scores import Scores
from .stored import remember
from .ticket import Ticket

Model = TypeVar("Model", bound=nn.Module)
Slices = dict[str, tuple[int, Tensor]]

TOLERANCE = 1e-4
"""Largest max|cut - masked| / max|masked| in fp32 that counts as equal."""


class CutMismatch(RuntimeError):
    """The cut model does not compute what the masked model computes. Nothing was changed."""


def apply(
    model: Model, ticket: Ticket, *, weights: Scores | None = None, inplace: bool = False, check: bool = True
) -> Model:
    """Remove what the ticket does not keep, physically.

    Args:
        model: A supported Hugging Face model, whole or cut before.
        ticket: A ticket for it, in indices of the whole model. Of a cut model it keeps what is there, or less.
        weights: Scores that kept theta_T: the cut model starts from the searched weights, with the
            coefficients folded in. Without it, from the model's present weights.
        inplace: Cut this model instead of a copy.
        check: Compare the cut model with the masked one on a small random batch.

    Returns:
        A model of the same class whose config remembers the ticket, this last one alone. An optimizer of the model
        given does not fit it: build a new one, or carry it over with `rebind`.

    Raises:
        Refused: The ticket is for another model or keeps what a cut model has no more, or the model is unsupported, or
            has no values to check with.
        CutMismatch: Cut and masked differ by more than 1e-4; the model given is untouched.
    """
    anatomy = of(model)
    if not isinstance(ticket, Ticket):
        raise Refused(f"a ticket is what can be cut out, not a {type(ticket).__name__}; draw a ticket first.")
    ticket.fits(anatomy)
    _refuse_gated(model, anatomy)
    _refuse_masked(model, anatomy)
    if check and any(parameter.is_meta for parameter in model.parameters()):
        raise Refused(
            "the model is on the meta device, where weights have no values; load it with its weights, or cut it for "
            "its sizes alone with check=False."
        )
    if weights is not None and weights.weights is None:
        raise Refused("these scores hold no searched weights; search with keep_weights=True.")
    target = model if inplace else copy.deepcopy(model)
    if check and inplace:
        # Try it on a copy first, so that a failure leaves the model whole.
        trial = copy.deepcopy(model)
        _load_searched(trial, weights)
        _check(trial, anatomy, ticket)
        del trial
    _load_searched(target, weights)
    if check and not inplace:
        _check(target, anatomy, ticket)
    cut(target, ticket)
    return target


def cut(model: nn.Module, ticket: Ticket) -> None:
    """Replace the linears of `model` by smaller ones, in place, unchecked."""
    anatomy = of(model)
    for name, (dim, index) in slices(anatomy, ticket).items():
        module_name, _, tensor_name = name.rpartition(".")
        part = linear.linear_at(model, module_name)
        if tensor_name == "weight":
            linear.resize(part, dim, len(index))
        old: Tensor | None = getattr(part, tensor_name)
        if old is not None:
            small = old.detach().index_select(dim, index.to(old.device))
            setattr(part, tensor_name, nn.Parameter(small, requires_grad=old.requires_grad))
    family = anatomy.family
    attentions = [model.get_submodule(layer.attention) for layer in anatomy.layers]
    for attention, kept in zip(attentions, ticket.heads, strict=True):
        _update(attention, family.head_count, len(kept))
        _update(attention, family.head_width, len(kept) * anatomy.head_size)
    if family.settle:
        family.settle(attentions, ticket.heads)
    remember(model, anatomy, ticket)


def slices(anatomy: Anatomy, ticket: Ticket) -> Slices:
    """For every tensor that shrinks: its name, the dimension, and the indices kept.

    A linear's weight comes before its bias.
    """
    found: Slices = {}
    out, into = anatomy.axes
    for layer, (heads, neurons) in zip(anatomy.layers, _places(anatomy, ticket), strict=True):
        for name, index in (
            *_stacked(layer.from_heads, layer.heads, heads).items(),
            *_stacked(layer.from_neurons, layer.neurons, neurons).items(),
        ):
            found[f"{name}.weight"] = (out, index)
            found[f"{name}.bias"] = (0, index)
        found[f"{layer.output}.weight"] = (into, _features(heads, anatomy.head_size))
        found[f"{layer.down}.weight"] = (into, _features(neurons, 1))
    return found


def rebind(optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module) -> torch.optim.Optimizer:
    """Carry an optimizer over from a model to its cut copy, moments sliced like the weights.

    Args:
        optimizer: Holds parameters of `old`; changed in place. A group named `"coefficients"` (the
            gates of a search) is dropped, so that no dead parameter stays behind.
        old: The model before the cut, whole or cut before.
        new: What `apply` made of it.

    Returns:
        The same optimizer, on the parameters of `new`.

    Raises:
        Refused: `new` was not cut from a model like `old`, or is `old` itself; the optimizer is not of `old`, or keeps
            state that cannot be cut along. Nothing was changed.
    """
    config: Any = getattr(new, "config", None)
    if not getattr(config, "earlybert", None):
        raise Refused("rebind needs a cut model; this one carries no ticket.")
    ticket = Ticket.from_dict(config.earlybert["ticket"])
    if old is new:
        raise Refused("rebind needs the model from before the cut, too: let apply make a copy, without inplace.")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held.isdisjoint(map(id, old.parameters())):
        raise Refused(
            "the optimizer holds no parameter of the model from before the cut; give the one it was made for."
        )
    refuse_factored(optimizer)
    anatomy = of(old)
    ticket.fits(anatomy)
    return carry(optimizer, dict(old.named_parameters()), new, slices(anatomy, ticket))


def carry(
    optimizer: torch.optim.Optimizer, old: Mapping[str, Tensor], new: nn.Module, smaller: Slices
) -> torch.optim.Optimizer:
    """What `rebind` does once both sides are known; `old` may be of a model that was cut in place since.

    Args:
        optimizer: As `rebind`.
        old: Parameters of the model before the cut by name, each once.
        new: The cut model.
        smaller: What the cut kept of them.
    """
    names = {id(parameter): name for name, parameter in old.items()}
    target = dict(new.named_parameters())
    state: dict[Any, Any] = optimizer.state
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group.get("name") != "coefficients"]
    carried: dict[Any, Any] = {}
    for group in optimizer.param_groups:
        for position, parameter in enumerate(group["params"]):
            name = names.get(id(parameter))
            successor = parameter if name is None else target[name]
            if parameter in state:
                carried[successor] = {
                    key: _slice_like(value, parameter, smaller.get(name or ""))
                    for key, value in state[parameter].items()
                }
            group["params"][position] = successor
    state.clear()
    state.update(carried)
    return optimizer


def fold(model: nn.Module, scores: Scores) -> None:
    """Multiply the coefficients into W_O and W_2, in place, so that the gated model needs no gates."""
    anatomy = of(model)
    for index, layer in enumerate(anatomy.layers):
        heads = scores.heads[index][list(anatomy.left.heads[index])]
        neurons = scores.neurons[index][list(anatomy.left.neurons[index])]
        for name, c in ((layer.output, expand_heads(heads, anatomy.head_size)), (layer.down, neurons)):
            _scale_columns(model, name, c)


def mask(model: nn.Module, ticket: Ticket) -> None:
    """Set the columns of W_O and W_2 that the ticket does not keep to zero, in place: the reference of a cut."""
    anatomy = of(model)
    for layer, (heads, neurons) in zip(anatomy.layers, _places(anatomy, ticket), strict=True):
        for name, index, width in (
            (layer.output, _features(heads, anatomy.head_size), layer.heads * anatomy.head_size),
            (layer.down, _features(neurons, 1), layer.neurons),
        ):
            _scale_columns(model, name, torch.zeros(width).index_fill(0, index, 1.0))


def _places(anatomy: Anatomy, ticket: Ticket) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """For each layer, where the heads and neurons that a ticket keeps lie among those that a model has."""
    left = anatomy.left
    for present, heads, more_present, neurons in zip(left.heads, ticket.heads, left.neurons, ticket.neurons):
        yield places(present, heads), places(more_present, neurons)


def _scale_columns(model: nn.Module, name: str, c: Tensor) -> None:
    """Scale the inputs of a linear by c `[inputs]`, in its weight."""
    part = linear.linear_at(model, name)
    columns = linear.matrix(part).data
    columns.copy_((columns * c.to(columns.device)).to(columns.dtype))


def _stacked(blocks: Blocks, count: int, kept: tuple[int, ...]) -> dict[str, Tensor]:
    """Which outputs of each linear stay, when blocks of `count` units that name the same one lie behind one another."""
    rows: dict[str, list[Tensor]] = {}
    ends: dict[str, int] = {}
    for name, width in blocks:
        begin = ends.get(name, 0)
        rows.setdefault(name, []).append(begin + _features(kept, width))
        ends[name] = begin + count * width
    return {name: torch.cat(parts) for name, parts in rows.items()}


def _features(units: tuple[int, ...], width: int) -> Tensor:
    """Feature indices `[len(units) * width]` of these heads or neurons."""
    return (torch.tensor(units, dtype=torch.long)[:, None] * width + torch.arange(width)).reshape(-1)


def _slice_like(value: Any, parameter: Tensor, kept: tuple[int, Tensor] | None) -> Any:
    if kept is None or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    dim, index = kept
    return value.index_select(dim, index.to(value.device))


def refuse_factored(optimizer: Any) -> None:
    """Refuse an optimizer whose state cannot be cut as its weights are.

    Raises:
        Refused: It keeps tensors of another shape than the weight's, as Adafactor does.
    """
    for parameter, state in optimizer.state.items():
        for value in state.values():
            if isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                kind = type(getattr(optimizer, "optimizer", optimizer)).__name__
                raise Refused(
                    f"{kind} keeps state that is not one number a weight, which cannot be cut along; use AdamW, or "
                    "go on from the weights before the search with a fresh optimizer (weights='reset' in the callback)."
                )


def _update(module: nn.Module, attributes: tuple[str, ...], value: int) -> None:
    for attribute in attributes:
        if hasattr(module, attribute):
            setattr(module, attribute, value)


def _refuse_masked(model: nn.Module, anatomy: Anatomy) -> None:
    names = [name for layer in anatomy.layers for name in layer.linears]
    if any(hasattr(model.get_submodule(name), "weight_orig") for name in names):
        raise Refused("the model's weights are under pruning masks; make them permanent (torch.nn.utils.prune.remove).")


def _refuse_gated(model: nn.Module, anatomy: Anatomy) -> None:
    names = [name for layer in anatomy.layers for name in layer.linears]
    if any("forward" in vars(model.get_submodule(name)) for name in names):
        raise Refused("the model still has gates on it; detach them before the cut.")


def _load_searched(model: nn.Module, scores: Scores | None) -> None:
    if scores is None or scores.weights is None:
        return
    try:
        model.load_state_dict(scores.weights)
    except RuntimeError as error:
        raise Refused(f"the searched weights are of another model ({str(error).splitlines()[-1].strip()}).") from None
    fold(model, scores)


def _check(model: nn.Module, anatomy: Anatomy, ticket: Ticket) -> None:
    """Hold the cut against the mask, both as fp32 copies in eval mode, on two short rows, one of them padded."""
    masked, smaller = exact_copy(model), exact_copy(model)
    mask(masked, ticket)
    cut(smaller, ticket)
    with torch.no_grad(), full_precision():
        got = dict(_tensors(two_rows(smaller, anatomy)))
        for name, expected in _tensors(two_rows(masked, anatomy)):
            error = (got[name] - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
            if not error <= TOLERANCE:
                raise CutMismatch(
                    f"the cut {type(model).__name__} differs from the masked one by {error:.1e} in {name} "
                    f"(at most {TOLERANCE:.0e}); please report this model."
                )


def _tensors(output: Any) -> Iterator[tuple[str, Tensor]]:
    for name, value in output.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            yield name, value
