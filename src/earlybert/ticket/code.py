"""`modeling_earlybert.py`, the code in a saved folder that loads a cut model where this package is not installed."""

from __future__ import annotations

import inspect
import sys
from functools import lru_cache
from typing import Any

from ..anatomy import Family, family_of
from . import portable

CODE = "modeling_earlybert.py"
"""Its name."""

ABOUT = '''"""Loads the cut model in this folder with `transformers` alone: pass `trust_remote_code=True`.

Written by earlybert. Where that is installed this file is not needed: `earlybert.load(folder)` loads the folder, and so
do the Auto classes after `import earlybert`. It builds the stock classes, and gives their linears the sizes that
follow from `config.json`.
"""'''
FUTURE = "from __future__ import annotations"
SETTLING = "import inspect\nfrom collections.abc import Sequence\nfrom dataclasses import dataclass\n"


@lru_cache
def code(stock: Any, models: tuple[str, ...]) -> str:
    """The text of the file.

    Args:
        stock: A stock configuration class.
        models: Names of the stock model classes that it shall build.

    Raises:
        Refused: The family is not supported.
    """
    family = family_of(stock.model_type)
    config = f"Cut{stock.__name__}"
    loader = inspect.getsource(portable).partition(FUTURE)[2].strip()
    body = f"    config_class = {config}"
    if family.settle:
        body += f"\n    settle = staticmethod({family.settle.__name__})"
    blocks = [
        f"{ABOUT}\n\n{FUTURE}\n\n{SETTLING if family.settle else ''}{loader}",
        *_settling(family),
        f'class {config}(CutConfig, transformers.{stock.__name__}):\n    """Of a cut model."""',
        *(f'class {name}(Cut, transformers.{name}):\n    """Builds a cut one."""\n\n{body}' for name in models),
    ]
    return "\n\n\n".join(block.strip() for block in blocks) + "\n"


def _settling(family: Family) -> list[str]:
    """The text of what the family needs besides sizes: the functions and classes of its module."""
    if family.settle is None:
        return []
    module = sys.modules[family.settle.__module__]
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    return [inspect.getsource(value) for value in own if inspect.isclass(value) or inspect.isfunction(value)]
