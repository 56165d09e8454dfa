"""Tiny whole runs, as those of the recipes."""

from tests.recipes.conftest import _fixed_threads, flags

__all__ = ["_fixed_threads", "flags"]
