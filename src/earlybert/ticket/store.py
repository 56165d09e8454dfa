"""Save a cut model, and load it again as the same class with the same sizes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as hf_logging

from ..anatomy import Refused, family_of, first_line
from ..config.checks import shown
from . import card
from .code import CODE
from .files import and_remedy, half_folder, is_disk_error
from .ordinary import model_class, stock_type, ticket_in
from .ticket import Ticket


def save(model: nn.Module, path: str | os.PathLike[str], *, tokenizer: Any = None) -> None:
    """Write a model folder in Hugging Face layout; the ticket is inside `config.json`, a model card in `README.md`.

    Args:
        model: A cut (or whole) Hugging Face model.
        path: The folder. Files of an earlier save in it are replaced, each whole.
        tokenizer: Saved along, so that `AutoTokenizer.from_pretrained(path)` finds it.

    Raises:
        Refused: The path is a file or none, the disk is full, or the folder cannot be written; the model has adapters
            on it, or is no Hugging Face model; what was there is unchanged.
    """
    if not hasattr(model, "save_pretrained"):
        raise Refused(
            f"{type(model).__name__} is not a Hugging Face model and could not be loaded again; save the whole model, "
            "not a part of it or what is wrapped around it."
        )
    if not isinstance(path, str | os.PathLike):
        raise Refused(f"the path to save to must be that of a folder, got {shown(path)}.")
    if hasattr(model, "peft_config"):
        raise Refused(
            "the model has adapters on it, and would save those alone; merge them (merge_and_unload), or save the base "
            "model with earlybert.save and the adapters with their own save_pretrained."
        )
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise Refused(f"{target} is a file; choose a folder to save to.")
    try:
        with half_folder(target) as fresh:
            with quiet():
                model.save_pretrained(fresh)  # pyright: ignore[reportCallIssue]
                if tokenizer is not None:
                    tokenizer.save_pretrained(fresh)
            if card.is_ours(target / card.NAME):  # somebody's own card stays
                (fresh / card.NAME).write_text(card.card_of(model, ticket_of(model)), encoding="utf-8")
            _move(fresh, target)
    except Exception as error:
        if is_disk_error(error):
            raise Refused(f"the model could not be saved to {target} {and_remedy(error)}, and save again.") from error
        raise


def load(path: str | os.PathLike[str], *, kind: type | None = None, **options: Any) -> Any:
    """Load what `save` or `save_pretrained` wrote, cut or whole, in eval mode.

    Args:
        path: A model folder.
        kind: Class of the model, where it is not one of `transformers`, such as a subclass with a head of your own.
        **options: Passed on to `from_pretrained` (`dtype`, `device_map`, ...).

    Returns:
        A model of the class it was saved from, with label names; the ticket is `ticket_of(model)`. With
        `output_loading_info=True` the model and that information.

    Raises:
        Refused: The folder is missing, broken, holds no safetensors or an unsupported model; `kind` is no model class.
    """
    folder = Path(path)
    config = read_config(folder)
    family_of(stock_type(config))
    kind = _model_class(config, folder, kind)
    if not any(folder.glob("*.safetensors")):
        raise Refused(f"model folder {folder} holds no safetensors file; other formats are not opened.")
    refuse_climbing(folder)
    build: Any = kind
    if config.get("earlybert") is not None:
        ticket_in(config["earlybert"], f"the ticket in {folder}")
        build = model_class(kind)
    try:
        with quiet():
            found: Any = build.from_pretrained(folder, **{**options, "use_safetensors": True, "local_files_only": True})
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"model folder {folder} cannot be loaded ({first_line(error)}).") from error
    (found[0] if isinstance(found, tuple) else found).eval()
    return found


def ticket_of(model: nn.Module) -> Ticket | None:
    """The ticket a cut model was made with; None for a whole model."""
    entry = getattr(getattr(model, "config", None), "earlybert", None)
    return Ticket.from_dict(entry["ticket"], "the ticket in the model's config") if entry else None


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model folder.

    Raises:
        Refused: It is missing or is not a JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except OSError:
        hint = f"; its model is in {folder / 'model'}" if (folder / "model" / "config.json").exists() else ""
        raise Refused(f"{folder} is not a model folder: it has no config.json that can be read{hint}.") from None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise Refused(f"the config.json in {folder} is broken.")
    return config


def refuse_climbing(folder: Path) -> None:
    """Stop before weights are read that an index places outside of the model's folder.

    Raises:
        Refused: As said, or the index is broken.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        inside = all(Path(name).name == name for name in names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Refused(f"{index} is broken; save the model again.") from None
    if not inside:
        raise Refused(f"{index} names files outside of the folder; they are not opened.")


@contextmanager
def quiet() -> Iterator[None]:
    """No load report, no bar and no warning from `transformers` for a moment."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hf_logging.set_verbosity_error()
    hub.setLevel(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if bars:
            hf_logging.enable_progress_bar()


def _model_class(config: dict[str, Any], folder: Path, given: type | None) -> Any:
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else "None"
    kind = getattr(transformers, name, None) if given is None else given
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        return kind
    if given is not None:
        raise Refused(f"kind must be a model class, a subclass of PreTrainedModel, not {given!r}.")
    raise Refused(
        f"model folder {folder} names the class {name!r}, which transformers does not have; if it is yours, give it: "
        "earlybert.load(folder, kind=...)."
    )


def _move(fresh: Path, target: Path) -> None:
    """Put every file of `fresh` in place; a new folder appears at once."""
    if not target.exists():
        fresh.rename(target)
        return
    new = {file.name for file in fresh.iterdir()}
    for file in sorted(fresh.iterdir(), key=lambda file: file.name == "config.json"):
        if file.is_dir():  # such as a tokenizer's chat templates; a folder is only replaced by an empty one
            shutil.rmtree(target / file.name, ignore_errors=True)
        os.replace(file, target / file.name)
    # Weights of an earlier save, under the names transformers gives them, and code; other files are not ours to remove.
    for pattern in ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", CODE):
        for stale in target.glob(pattern):
            if stale.name not in new:
                stale.unlink()
