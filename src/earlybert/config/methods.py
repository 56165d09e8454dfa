"""The ways of training that a YAML file can name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """What a YAML file may call a way of training."""

    about: str
    dense: bool = False
    """Trained as the dense run is, for dense_epochs at dense_lr; otherwise as a ticket, for epochs at lr."""
    like: bool = False
    """Takes something from another run: its cost, or of a ticket its widths or its scores."""
    searches: bool = False
    """Whether it searches itself (stage 1). With weights: keep the search is part of its epochs."""
    keeps: bool = False
    """Whether there are searched weights to go on from (weights: keep)."""
    rescored: bool = False
    """Whether its scores can be taken again between cuts, of a model in training and without another search."""
    joint: bool = False
    """Whether its scores of heads and neurons are both in units of the loss, so that one ranking can hold both."""
    alone: bool = False
    """Whether it runs on one process only."""


METHODS = {
    "ticket": Method("the early-bird ticket: search, draw, train", searches=True, keeps=True),
    "dense": Method("the full model", dense=True),
    "dense_same_flops": Method("the full model, stopped at another run's FLOPs, at its learning rate", like=True),
    "dense_same_time": Method(
        "the full model, stopped at a ticket's training time, at its learning rate", like=True, alone=True
    ),
    "random": Method("a random ticket of the same budget, no search"),
    "random_same_widths": Method("a random ticket with a ticket's own widths, layer by layer", like=True),
    "inverted": Method("what a ticket's search found least important", like=True),
    "uniform": Method("a ticket's own scores, every layer equally wide", like=True),
    "taylor": Method("a ticket by first-order Taylor scores at theta_0", joint=True),
    "fisher": Method("a ticket by Fisher scores at theta_0", joint=True),
    "taylor_searched": Method(
        "a ticket by first-order Taylor scores at the searched weights",
        searches=True,
        keeps=True,
        rescored=True,
        joint=True,
    ),
    "fisher_searched": Method(
        "a ticket by Fisher scores at the searched weights", searches=True, keeps=True, rescored=True, joint=True
    ),
    "surgeon": Method("a ticket by what is lost after the rest makes up for it (OBS), at theta_0"),
    "surgeon_searched": Method(
        "a ticket by the same at the searched weights", searches=True, keeps=True, rescored=True
    ),
    "magnitude": Method("a ticket by weight magnitude at theta_0"),
    "mlm_search": Method(
        "a ticket searched on masked-language modelling of the task's text (App. B)", searches=True, alone=True
    ),
    "layerdrop": Method("a third of the layers removed, then trained", dense=True),
    "layerdrop_trained": Method("layers dropped at random while training, a third removed at the end", dense=True),
    "imp": Method("unstructured lottery ticket by iterative magnitude pruning with rewinding", dense=True, alone=True),
}
"""In the order in which tables list them."""
RIVALS = ("dense_same_flops", "dense_same_time")
"""The dense model stopped at the cost of something smaller."""


def has_what_it_takes(other: str, method: str) -> bool:
    """Whether a run of `other` has what one of `method`, which is like it, takes from it.

    That is a ticket, or its time; only FLOPs are to be had from what loses layers or single weights, too.
    """
    if other in ("dense", *RIVALS):
        return False
    return not METHODS[other].dense or method == "dense_same_flops"


def untimed(method: str, cuts: int) -> str | None:
    """What a ticket's run has that `dense_same_time` cannot time behind it; None where there is nothing."""
    if method == "mlm_search":
        return "a search on masked words"
    return "several cuts" if cuts > 1 else None
