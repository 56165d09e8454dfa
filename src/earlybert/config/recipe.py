"""Recipes: settings that belong together, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .methods import METHODS

BUDGET = ("heads", "neurons", "heads_scope", "neurons_scope")
"""Settings that say what goes by kind, where `joint` says it for both together."""

RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {},
    "best": {
        "method": "fisher_searched",
        "weights": "keep",
        "search_epochs": 0.6,
        "epochs": 1.5,
        "joint": 0.31,
        "score_batches": 16,
        "refit": 8,
        "match": 1.0,
    },
}
"""What each sets where nothing else is said. `default` and `paper` differ in when the search stops alone."""
SET_BY_ONE = frozenset(name for recipe in RECIPES.values() for name in recipe)
"""Settings for which nothing (`joint: null`) is something that a person says: not what a recipe sets."""


def with_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, and those of their recipe that are not among them.

    A method that searches nothing has no use for a recipe's settings and gets none of them. One whose scores no
    joint ranking can hold does not get `joint`, and neither do settings that say how many heads or neurons go.
    """
    recipe = RECIPES.get(str(settings.get("recipe")), {})
    kind = METHODS.get(str(settings.get("method", recipe.get("method", "ticket"))))
    if kind is None or not kind.keeps:
        return dict(settings)
    if not kind.joint or any(name in settings for name in BUDGET):
        recipe = {name: value for name, value in recipe.items() if name != "joint"}
    return {**recipe, **settings}
