"""After `import earlybert`, the Auto classes of `transformers` load cut models, whichever was imported first.

`import earlybert` must not wait for `transformers`. So where that is not loaded yet, the one module of it that knows
model types is awaited: a finder looks for this name alone, lets the ordinary ones find it, and goes away.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AWAITED = "transformers.models.auto.configuration_auto"


def prepare() -> None:
    """Register the model type of cut models with `AutoConfig`, now or when `transformers` has one."""
    module = sys.modules.get(AWAITED)
    if module is not None:
        register(module)
    elif not any(isinstance(finder, Awaiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, Awaiting())


def register(module: ModuleType) -> None:
    """Register the model type of cut models.

    Args:
        module: `transformers.models.auto.configuration_auto`.
    """
    from transformers import PretrainedConfig

    class CutModel(PretrainedConfig):
        """Stands for every cut model; reading one gives a configuration of its own family."""

        model_type = "earlybert"

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            from .ticket.ordinary import config_of

            return config_of(config_dict, **kwargs)

    CutModel.__module__ = __name__
    module.AutoConfig.register(CutModel.model_type, CutModel, exist_ok=True)


class Awaiting(MetaPathFinder):
    """Finds one module as the other finders do, and registers once it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As `importlib` asks for it."""
        if fullname != AWAITED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            register(module)

        loader.exec_module = execute_and_register
        return spec
