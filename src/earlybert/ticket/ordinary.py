"""The Auto classes of `transformers` build cut models, once they are told how."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from transformers.models.auto import configuration_auto, image_processing_auto, tokenization_auto

from ..anatomy import family_of
from . import portable
from .stored import auto_classes, config_class
from .surgery import cut
from .ticket import Ticket


def config_of(values: dict[str, Any], **options: Any) -> Any:
    """The configuration of a cut model from its `config.json`. Afterwards the Auto classes build models for it.

    Args:
        values: What the file says.
        **options: As `from_dict` of a stock configuration takes them.

    Raises:
        Refused: It holds no ticket, or one of an unsupported family.
    """
    name = stock_type(values)
    family_of(name)
    kind = config_class(configuration_auto.CONFIG_MAPPING[name])
    register(kind)
    values = {key: value for key, value in values.items() if key != "auto_map"}
    return kind.from_dict({**values, "model_type": name}, **options)


def stock_type(values: dict[str, Any]) -> Any:
    """The `model_type` of the whole model, from the `config.json` of a cut or whole one.

    Raises:
        Refused: It says that it is of a cut model and holds no ticket.
    """
    name = values.get("model_type")
    return (
        ticket_in(values.get("earlybert"), "the ticket in config.json").model_type
        if name == portable.MODEL_TYPE
        else name
    )


def ticket_in(entry: Any, where: str) -> Ticket:
    """The ticket in what a configuration holds under `earlybert`.

    Args:
        entry: That.
        where: Names the ticket in a refusal.

    Raises:
        Refused: It holds none.
    """
    return Ticket.from_dict(entry.get("ticket") if isinstance(entry, dict) else None, where)


@lru_cache
def model_class(stock: Any) -> Any:
    """A subclass of a stock model class that builds the model cut to size, for the stock loader to fill.

    What it builds is of the stock class.
    """

    def cut_after_init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        with portable.as_stock(config):
            stock.__init__(self, config, *args, **kwargs)
        cut(self, ticket_in(getattr(config, "earlybert", None), "the ticket in the model's config"))
        self.__class__ = stock

    known = {"__init__": cut_after_init, "__module__": __name__, "config_class": config_class(stock.config_class)}
    return type(stock.__name__, (stock,), known)


@lru_cache
def register(kind: Any) -> None:
    """Let the Auto classes build models for a class that `config_class` made."""
    stock = portable.stock_class(kind)
    for auto, model in auto_classes(stock):
        auto.register(kind, model_class(model), exist_ok=True)
    for mapping in (tokenization_auto.TOKENIZER_MAPPING, image_processing_auto.IMAGE_PROCESSOR_MAPPING):
        if stock in mapping:  # a pipeline asks whether it has to load one
            mapping.register(kind, mapping[stock], exist_ok=True)
