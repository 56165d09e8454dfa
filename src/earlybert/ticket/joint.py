"""One ranking of heads and neurons together, by what each is worth per FLOP."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..anatomy import Refused
from .draw import importances, layer_order, margin_of, ticket_of_masks, tie_hash
from .scores import Scores
from .ticket import Ticket

HEAD, NEURON = 0, 1


def draw_jointly(scores: Scores, *, remove: float, head_price: float, align: int = 64) -> Ticket:
    """Keep what is worth most for its FLOPs, heads and neurons in one ranking.

    In BERT a head has four matrices of `head_size x hidden` (q, k, v, W_O), a neuron two vectors of `hidden`: a
    head costs as much as `2 * head_size` neurons (attention scores, which depend on the length, are left
    out). Scores of heads and neurons have to be in one unit, as Taylor and Fisher scores are, which speak of
    the loss. Coefficients of a search, norms of weights and a surgeon's shares of a layer's own output are not.

    Args:
        scores: Importance of every head and neuron.
        remove: Share of the FLOPs of all heads and neurons to remove, in [0, 1); of a cut model's, too, it counts from
            the whole one.
        head_price: What a head costs, in neurons: `Anatomy.head_price`.
        align: Every layer keeps a multiple of this many neurons, best first.

    Returns:
        A ticket; every layer keeps a head and `align` neurons at least. The same scores and arguments give the
        same ticket. What is kept is within one head or block of the budget.

    Raises:
        Refused: The share is out of range, or leaves less than every layer's least, or more than a cut model has.
    """
    if not 0 <= remove < 1:
        raise Refused(f"the share of FLOPs to remove must be in [0, 1), got {remove!r}.")
    heads, neurons = importances(scores)
    layers, units = neurons.shape
    if not 1 <= align <= units:
        raise Refused(f"align must be between 1 and the {units} neurons of a layer, got {align!r}.")
    price: dict[int, float] = {HEAD: head_price, NEURON: align}
    budget = (1 - remove) * (heads.size * price[HEAD] + neurons.size)
    head_order, neuron_order = layer_order(heads, scores.seed), layer_order(neurons, scores.seed)
    ranked = _ranked(scores.seed, {HEAD: (heads, head_order), NEURON: (neurons, neuron_order)}, price)
    kept = {HEAD: np.ones(layers, dtype=int), NEURON: np.ones(layers, dtype=int)}
    spent = layers * (price[HEAD] + price[NEURON])
    if spent > budget:
        raise Refused(f"removing {remove:g} of the FLOPs leaves less than a head and {align} neurons in every layer.")
    for _, _, kind, layer in ranked:
        if spent + price[kind] / 2 > budget:  # half a unit over is nearer than half a unit under
            break
        kept[kind][layer] += 1
        spent += price[kind]
    masks = [np.zeros_like(part, dtype=bool) for part in (heads, neurons)]
    for layer in range(layers):
        masks[HEAD][layer, head_order[layer, : kept[HEAD][layer]]] = True
        masks[NEURON][layer, neuron_order[layer, : kept[NEURON][layer] * align]] = True
    if any((mask & np.isneginf(part)).any() for mask, part in zip(masks, (heads, neurons), strict=True)):
        raise Refused(
            f"removing {remove:g} of the FLOPs would keep more than the cut model has; the share counts from the whole "
            "model, what is gone already included: remove more, or use a smaller align."
        )
    margins = {
        "heads": margin_of(heads, masks[HEAD], "global"),
        "neurons": margin_of(neurons, masks[NEURON], "global"),
    }
    return ticket_of_masks(scores, masks[HEAD], masks[NEURON], {"joint": remove, "align": align}, margins)


def _ranked(
    seed: int, kinds: Mapping[int, tuple[NDArray[np.float64], NDArray[np.intp]]], price: Mapping[int, float]
) -> list[tuple[float, int, int, int]]:
    """(-worth per FLOP, tie, kind, layer) of everything beyond each layer's least, best first.

    Within a layer and kind the worth falls, so that taking them in this order takes each layer's best first.
    """
    found: list[tuple[float, int, int, int]] = []
    for kind, (importance, order) in kinds.items():
        size = 1 if kind == HEAD else int(price[NEURON])
        blocks = importance.shape[1] // size
        ties = tie_hash(seed + kind, *importance.shape)
        for layer in range(len(importance)):
            for block in range(1, blocks):
                units = order[layer, block * size : (block + 1) * size]
                worth = float(importance[layer, units].sum()) / price[kind]
                found.append((-worth, int(ties[layer, units[0]]), kind, layer))
    return sorted(found)
