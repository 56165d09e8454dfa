"""Draw a ticket: which heads and neurons stay, by magnitude (Sec. 3.2). Exact and deterministic."""

from __future__ import annotations

from fractions import Fraction
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..anatomy import Refused
from .scores import Scores
from .ticket import Layers, Ticket

Scope = Literal["layer", "global"]
Mask = NDArray[np.bool_]


def draw(
    scores: Scores,
    *,
    heads: int | float,
    neurons: int | float,
    heads_scope: Scope = "layer",
    neurons_scope: Scope = "global",
    align: int = 64,
) -> Ticket:
    """Keep the heads and neurons with the largest absolute scores; nothing is touched, no model is needed.

    Args:
        scores: The coefficients of a search, or any other importance.
        heads: What to *remove*: an int is a count (in every layer, or in all together when
            global), a float in [0, 1) a fraction. Counts are rounded half up. 1/3 of 16 is not 6:
            give counts where a paper gives counts. From scores of a cut model, too, it counts from
            the whole one, with what is gone already: the same budget ends at the same size.
        neurons: The same for intermediate neurons.
        heads_scope: Compare heads within their layer (the paper's choice) or over all layers.
        neurons_scope: Compare neurons over all layers (the paper's choice) or within each.
        align: Every layer keeps a multiple of this many neurons, chosen so that the kept scores
            are largest and the total is within one multiple of the budget. 64 is what GPUs want;
            1 gives the exact count of the paper. Removing no neurons ignores it.

    Returns:
        A ticket. The same scores and arguments give the same ticket, to the byte, everywhere;
        equal scores are ordered by a hash seeded with `scores.seed`, not by index.

    Raises:
        Refused: A ratio outside [0, 1), a budget that would leave a layer with nothing, or one that
            would leave more than a cut model still has.
    """
    if type(align) is not int or align < 1:
        raise Refused(f"align must be a whole number of at least 1, got {align!r}.")
    heads, neurons = _plain(heads, "heads"), _plain(neurons, "neurons")
    head_scores, neuron_scores = importances(scores)
    head_mask = keep_mask(head_scores, heads, scope=heads_scope, seed=scores.seed, what="heads")
    neuron_mask = keep_mask(neuron_scores, neurons, scope=neurons_scope, align=align, seed=scores.seed, what="neurons")
    how = {"heads": heads, "neurons": neurons, "heads_scope": heads_scope, "neurons_scope": neurons_scope}
    margins = {
        "heads": margin_of(head_scores, head_mask, heads_scope),
        "neurons": margin_of(neuron_scores, neuron_mask, neurons_scope),
    }
    return ticket_of_masks(scores, head_mask, neuron_mask, {**how, "align": align}, margins)


def ticket_of_masks(
    scores: Scores, heads: Mask, neurons: Mask, how: dict[str, Any], margins: dict[str, float | None]
) -> Ticket:
    """The ticket that keeps what the masks keep.

    Args:
        scores: What the masks were drawn from.
        heads: `[layers, heads]`.
        neurons: `[layers, neurons]`.
        how: The settings they were drawn with. JSON values only.
        margins: `margin_of` both.
    """
    drawn = {
        **how,
        "source": scores.source,
        "steps": scores.steps,
        "seed": scores.seed,
        "scores_sha256": scores.digest(),
        "margin": margins,
    }
    kept = _indices(heads), _indices(neurons)
    return Ticket(*kept, scores.model_type, num_heads=heads.shape[1], num_neurons=neurons.shape[1], drawn=drawn)


def keep_mask(
    importance: NDArray[np.float64],
    remove: int | float,
    *,
    scope: Scope,
    align: int = 1,
    seed: int = 0,
    what: str = "units",
) -> Mask:
    """Which units stay, `[layers, units]`, when so many of the least important go.

    Units of a layer are taken in blocks of `align`, best first. A block's worth is the sum of its
    scores, which falls within a layer, so taking the best blocks greedily keeps the largest total.

    Args:
        importance: Non-negative float64 `[layers, units]`; -inf for what is gone already.
        remove: As in `draw`.
        scope: As in `draw`.
        align: Units per block.
        seed: Of the hash that orders equal scores.
        what: Plural noun for the sentences of refusals.

    Raises:
        Refused: As in `draw`.
    """
    if scope not in ("layer", "global"):
        raise Refused(f"the scope of {what} must be 'layer' or 'global', got {scope!r}.")
    layers, units = importance.shape
    whole = units if scope == "layer" else layers * units
    removed = _count(remove, whole, what)
    if removed == 0:
        return _present(np.ones((layers, units), dtype=bool), importance, remove, what)
    kept = whole - removed
    if align > units:
        raise Refused(f"align {align} is larger than the {units} {what} of a layer; use a smaller align.")

    tie = tie_hash(seed, layers, units)
    order = layer_order(importance, seed)
    blocks = units // align
    if scope == "layer":
        least, most = max(1, kept // align), min(blocks, -(-kept // align))
        kept *= layers
    else:
        least, most = 1, blocks
    wanted = min(max((2 * kept + align) // (2 * align), least * layers), max(most, least) * layers)
    if abs(wanted * align - kept) >= align:
        raise Refused(
            f"removing {remove!r} of the {what} would leave {kept} of {layers * units} in {layers} layers; "
            f"every layer keeps between {align} and {blocks * align} (align {align}). Remove "
            f"{'fewer' if wanted * align > kept else 'more'} or lower align."
        )
    counts = _block_counts(importance, tie, order, align, least, most, wanted)
    mask = np.zeros((layers, units), dtype=bool)
    for layer in range(layers):
        mask[layer, order[layer, : counts[layer] * align]] = True
    return _present(mask, importance, remove, what)


def _present(mask: Mask, importance: NDArray[np.float64], remove: int | float, what: str) -> Mask:
    """The mask, if it keeps nothing that is gone already."""
    gone = np.isneginf(importance)
    wrong = np.flatnonzero((mask & gone).any(axis=1))
    if wrong.size:
        layer = int(wrong[0])
        raise Refused(
            f"removing {remove!r} of the {what} would keep {int(mask[layer].sum())} in layer {layer}, of which the cut "
            f"model has {int((~gone[layer]).sum())}; a budget counts from the whole model, what is gone already "
            "included: remove more, or use another scope or a smaller align."
        )
    return mask


def layer_order(importance: NDArray[np.float64], seed: int) -> NDArray[np.intp]:
    """Units of each layer, best first, equal ones by the seeded hash: `[layers, units]`."""
    return np.lexsort((tie_hash(seed, *importance.shape), -importance), axis=1)


def _block_counts(
    importance: NDArray[np.float64],
    tie: NDArray[np.uint64],
    order: NDArray[np.intp],
    align: int,
    least: int,
    most: int,
    wanted: int,
) -> NDArray[np.intp]:
    """Blocks kept in each layer: `least` in all, then the most valuable until there are `wanted`."""
    layers = len(order)
    counts = np.full(layers, least, dtype=np.intp)
    span = slice(least * align, most * align)
    candidates = order[:, span].reshape(layers, -1, align)  # [layers, blocks to choose from, align]
    worth = np.take_along_axis(importance[:, None], candidates, axis=2).sum(axis=2)
    # A block's tie is that of its best unit, so blocks of one unit are ordered just like units.
    block_tie = np.take_along_axis(tie[:, None], candidates[:, :, :1], axis=2)[:, :, 0]
    best = np.lexsort((block_tie.ravel(), -worth.ravel()))[: wanted - least * layers]
    np.add.at(counts, best // max(1, worth.shape[1]), 1)
    return counts


def _count(remove: int | float, whole: int, what: str) -> int:
    """The number to remove out of `whole`, rounded half up."""
    remove = _plain(remove, what)
    if isinstance(remove, int):
        if remove < 0:
            raise Refused(f"the number of {what} to remove must be at least 0, got {remove}.")
        if remove >= whole:
            raise Refused(f"cannot remove {remove} of {whole} {what}: at least one has to stay.")
        return remove
    if not 0 <= remove < 1:
        raise Refused(f"the fraction of {what} to remove must be in [0, 1), got {remove!r}.")
    # As the number was written, not as its binary neighbour, which is less: 0.35 of 10, rounded half up, is 4.
    return int(Fraction(repr(remove)) * whole + Fraction(1, 2))


def _plain(remove: int | float, what: str) -> int | float:
    """A Python number, also from numpy's."""
    if isinstance(remove, (bool, np.bool_)) or not isinstance(remove, (Integral, Real)):
        raise Refused(f"{what} to remove must be a count or a fraction, got {remove!r}.")
    return int(remove) if isinstance(remove, Integral) else float(remove)


def tie_hash(seed: int, layers: int, units: int) -> NDArray[np.uint64]:
    """A pseudo-random number for each (layer, index), the same on every machine (SplitMix64)."""
    layer, index = np.divmod(np.arange(layers * units, dtype=np.uint64), np.uint64(units))
    with np.errstate(over="ignore"):
        z = _mix(np.full(layers * units, seed % 2**64, dtype=np.uint64))
        z = _mix(z ^ layer)
        z = _mix(z ^ index)
    return z.reshape(layers, units)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def margin_of(importance: NDArray[np.float64], mask: Mask, scope: Scope) -> float | None:
    """How far the worst unit kept lies above the best unit removed; the closest layer where scope is a layer.

    0 is a tie. Below 0 alignment or a floor went before the scores. None when nothing was removed that was there.
    """
    groups = zip(importance, mask, strict=True) if scope == "layer" else [(importance, mask)]
    removed = ((scores[kept], scores[~kept & ~np.isneginf(scores)]) for scores, kept in groups)
    return min((float(kept.min() - out.max()) for kept, out in removed if out.size), default=None)


def importances(scores: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """|score| of heads and of neurons as float64 `[layers, units]`; -inf for what a cut model has no more."""
    heads, neurons = (
        np.abs(torch.stack(vectors).numpy().astype(np.float64)) for vectors in (scores.heads, scores.neurons)
    )
    if scores.within is not None:
        for matrix, layers in ((heads, scores.within.heads), (neurons, scores.within.neurons)):
            for row, kept in zip(matrix, layers, strict=True):
                row[np.setdiff1d(np.arange(len(row)), kept)] = -np.inf
    return heads, neurons


def _indices(mask: Mask) -> Layers:
    return tuple(tuple(np.flatnonzero(row).tolist()) for row in mask)
