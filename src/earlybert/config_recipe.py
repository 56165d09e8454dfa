"""Recipes: settings that belong together, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config_methods import METHODS

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


def with_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, and those of their recipe that are not among them.

    A method that searches nothing has no use for a recipe's settings and gets none of them.
    """
    recipe = RECIPES.get(str(settings.get("recipe")), {})
    kind = METHODS.get(str(settings.get("method", recipe.get("method", "ticket"))))
    return {**recipe, **settings} if kind is not None and kind.keeps else dict(settings)
