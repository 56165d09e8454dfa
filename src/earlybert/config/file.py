"""Settings as a run folder keeps them: a YAML mapping of plain values, and nothing else that YAML can do."""

from __future__ import annotations

from typing import Any

import yaml

from .checks import BadSetting


class _Plain(yaml.SafeLoader):
    """Without aliases, by which a few lines can stand for more values than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def parse(content: bytes) -> dict[str, Any]:
    """The settings of a `config.yaml`, their values not yet looked at.

    Raises:
        BadSetting: It is no YAML mapping of names to values.
    """
    try:
        values = yaml.load(content, _Plain)  # a safe loader
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        values = None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise BadSetting("a YAML mapping of names to plain values was expected.")
    return values
