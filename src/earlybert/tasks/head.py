"""A pre-trained encoder with a fresh head for a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ..anatomy import Refused, family_of
from ..ticket.store import quiet
from . import demo
from .task import Task


def locate(model: str) -> str:
    """Where a model name points: the packaged model, a folder, or the hub."""
    return str(demo.model_path()) if model == demo.MODEL else model


def load_config(model: str) -> Any:
    """The configuration of a model to fine-tune, checked before any weight is read.

    Raises:
        Refused: It is not found, broken, of an unsupported family, or already cut.
    """
    where = locate(model)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(where)
    except (OSError, ValueError, KeyError) as error:
        if Path(where).is_dir():
            raise Refused(f"model folder {where} has no usable config.json ({_first_line(error)}).") from error
        raise Refused(
            f"model {model!r} was not found: there is no such folder, and the hub did not give it "
            f"(check the name and the network; {demo.MODEL} is the packaged model)."
        ) from error
    if not family_of(config.model_type).only_encodes_text:
        raise Refused(
            f"model {model!r} is of type {config.model_type!r}, which does not only encode text; "
            "cut it from Python (docs/families.md says how)."
        )
    if getattr(config, "earlybert", None):
        raise Refused(f"model {model!r} is already cut; start from the full model.")
    return config


def load_tokenizer(model: str) -> Any:
    """The model's tokenizer.

    Raises:
        Refused: There is none that can be read.
    """
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(locate(model))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise Refused(f"model {model!r} has no usable tokenizer ({_first_line(error)}).") from error


def load_model(model: str, task: Task, seed: int) -> Any:
    """theta_0: the pre-trained encoder with a head for the task, fp32, on the CPU.

    A head that the weights hold for as many labels is kept; any other is initialised from `seed`.

    Raises:
        Refused: The weights are missing, are not safetensors, or do not fit the configuration.
    """
    regression = task.problem == "regression"
    names: dict[str, Any] = {}
    if not regression:
        names = {
            "id2label": dict(enumerate(task.labels)),
            "label2id": {label: number for number, label in enumerate(task.labels)},
        }
    torch.manual_seed(seed)
    try:
        with quiet():
            found, report = AutoModelForSequenceClassification.from_pretrained(
                locate(model),
                num_labels=len(task.labels),
                problem_type="regression" if regression else "single_label_classification",
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **names,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise Refused(
            f"the weights of model {model!r} cannot be loaded as safetensors ({_first_line(error)}); "
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


def _name(key: Any) -> str:
    """A mismatched key comes with its two shapes."""
    return key if isinstance(key, str) else str(key[0])


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
