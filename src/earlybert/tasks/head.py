"""A pre-trained encoder with a fresh head for a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from ..anatomy import Refused, family_of, first_line
from ..data.hub import hub, locally
from ..ticket.ordinary import model_class, ticket_in
from ..ticket.store import quiet, refuse_climbing
from . import demo
from .task import Task


def locate(model: str) -> str:
    """Where a model name points: the packaged model, a folder, or the hub."""
    return str(demo.model_path()) if model == demo.MODEL else model


def load_config(model: str, *, offline: bool = False, cut: bool = False) -> Any:
    """The configuration of a model to fine-tune, checked before any weight is read.

    Args:
        model: A folder or a name; see `locate`.
        offline: Names are looked for in the hub's cache only.
        cut: Whether a cut model will do.

    Raises:
        Refused: It is not found, broken, of an unsupported family, or already cut.
    """
    where = locate(model)
    try:
        with quiet(), hub(offline=offline or locally(where)):
            config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if Path(where).is_dir():
            raise Refused(f"model folder {where} has no usable config.json ({first_line(error)}).") from error
        why = (
            "it is not in the hub's cache, and --offline forbids the hub (check the name"
            if offline
            else "the hub did not give it (check the name and the network"
        )
        raise Refused(
            f"model {model!r} was not found: there is no such folder, and {why}; {demo.MODEL} is the packaged model)."
        ) from error
    if not family_of(config.model_type).only_encodes_text:
        raise Refused(
            f"model {model!r} is of type {config.model_type!r}, which does not only encode text; "
            "cut it from Python (docs/families.md says how)."
        )
    if getattr(config, "earlybert", None) and not cut:
        raise Refused(
            f"model {model!r} is already cut; start from the full model, or fine-tune it as it is with --method dense."
        )
    return config


def load_tokenizer(model: str, *, offline: bool = False) -> Any:
    """The model's tokenizer.

    Args:
        model: A folder or a name; see `locate`.
        offline: Names are looked for in the hub's cache only.

    Raises:
        Refused: There is none that can be read.
    """
    where = locate(model)
    try:
        with quiet(), hub(offline=offline or locally(where)):
            return AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise Refused(f"model {model!r} has no usable tokenizer ({first_line(error)}).") from error


def load_model(model: str, task: Task, seed: int, *, offline: bool = False) -> Any:
    """theta_0: the pre-trained encoder with a head for the task, fp32, on the CPU. A cut encoder stays cut.

    A head that the weights hold for as many labels is kept; any other is initialised from `seed`.

    Args:
        model: A folder or a name; see `locate`.
        task: Decides the head.
        seed: Of a fresh head.
        offline: Names are looked for in the hub's cache only.

    Raises:
        Refused: The weights are missing, are not safetensors, or do not fit the configuration.
    """
    where = locate(model)
    kind, options = _head(task)
    config = load_config(model, offline=offline, cut=True)
    if locally(where):
        refuse_climbing(Path(where))
    with torch.device("meta"):
        stock = type(kind.from_config(config))
    entry = getattr(config, "earlybert", None)
    if entry:
        ticket_in(entry, f"the ticket of model {model!r}")
    build = model_class(stock) if entry else stock
    torch.manual_seed(seed)
    try:
        with quiet(), hub(offline=offline or locally(where)):
            found, report = build.from_pretrained(
                where, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **options
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise Refused(
            f"the weights of model {model!r} cannot be loaded as safetensors ({first_line(error)}); "
            "pickled weights are not opened."
        ) from error
    encoder = f"{found.base_model_prefix}."
    wrong = [
        str(key) for key in (*report["mismatched_keys"], *report["missing_keys"]) if _name(key).startswith(encoder)
    ]
    wrong = [key for key in wrong if "pooler" not in key]  # a fresh pooler is what many encoders come with
    if wrong:
        raise Refused(
            f"the weights of model {model!r} do not fit its config.json: {wrong[0]} is missing or of another size."
        )
    return found.float()


def load_masked(model: str, *, offline: bool = False) -> Any:
    """The same encoder with its own head for masked-language modelling, fp32, on the CPU.

    Raises:
        Refused: The weights hold no such head, or cannot be loaded.
    """
    where = locate(model)
    try:
        with quiet(), hub(offline=offline or locally(where)):
            found, report = AutoModelForMaskedLM.from_pretrained(
                where, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise Refused(f"model {model!r} cannot be loaded with a masked-language head ({first_line(error)}).") from error
    if missing := sorted(map(str, report["missing_keys"])):
        raise Refused(
            f"model {model!r} has no weights for masked-language modelling ({missing[0]} is missing); a search on that "
            "objective needs a model that was pre-trained with it."
        )
    return found.float()


def _head(task: Task) -> tuple[Any, dict[str, Any]]:
    """The class of a task's model, and what its head is told."""
    if task.problem == "span":
        return AutoModelForQuestionAnswering, {}
    if task.problem == "regression":
        return AutoModelForSequenceClassification, {"num_labels": 1, "problem_type": "regression"}
    return AutoModelForSequenceClassification, {
        "num_labels": len(task.labels),
        "problem_type": "single_label_classification",
        "id2label": dict(enumerate(task.labels)),
        "label2id": {label: number for number, label in enumerate(task.labels)},
    }


def _name(key: Any) -> str:
    """A mismatched key comes with its two shapes."""
    return key if isinstance(key, str) else str(key[0])
