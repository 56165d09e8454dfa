"""The run folder: everything about one run, in boring files."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
import yaml
from torch import nn

from .. import __version__
from ..anatomy import Refused
from ..config.checks import BadSetting, shown
from ..config.file import parse
from ..config.finetune import Finetune
from ..config.pretrain import Pretrain
from ..config.values import changed, to_dict, typed
from ..ticket import Scores
from ..ticket.files import write_atomically
from ..ticket.tensors import UNUSABLE
from ..ticket.tensors import typed as holds
from ..train import checkpoint
from ..train.steplog import LAST, SCORING, truncate
from .trackers import Tracker

Settings = TypeVar("Settings")
Folder = TypeVar("Folder", bound="RunFolder[Any]")


KINDS = {Finetune: "fine-tuning", Pretrain: "pre-training"}
"""Runs by their settings."""


WITH_ITS_OWN = "resume it with its own, or choose another --output."
AGAIN = "choose another --output, or remove it to do that run again."


def resuming(command: str, path: Path) -> str:
    """What goes on with a run that was begun by a command."""
    return f"earlybert {command} --output {path} --resume"


class RunFolder(Generic[Settings]):
    """Paths inside a run folder, and the settings it was made with.

    Files: `config.yaml`, `scores.safetensors` (and `sensitivity.safetensors`, where the ticket is drawn from other
    scores than the search's), `history.bin`, `ticket.json`, `steps.jsonl`, `profile.json`, `predictions.safetensors`,
    `metrics.json`, `model/`, `report.html`; while a stage runs also `checkpoint.safetensors`, and with `weights: keep`
    the end of the search in `searched.safetensors`.
    """

    kind: ClassVar[Any]
    """The dataclass of its settings."""

    def __init__(self, path: str | os.PathLike[str], config: Settings) -> None:
        self.path = Path(path)
        self.config = config
        self.scores = self.path / "scores.safetensors"
        self.sensitivity = self.path / "sensitivity.safetensors"
        self.history = self.path / "history.bin"
        self.ticket = self.path / "ticket.json"
        self.steps = self.path / "steps.jsonl"
        self.metrics = self.path / "metrics.json"
        self.model = self.path / "model"
        self.predictions = self.path / "predictions.safetensors"
        self.report = self.path / "report.html"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.searched = self.path / "searched.safetensors"
        self.profile = self.path / "profile.json"
        self.tracker: Tracker | None = None
        self.command: str | None = None
        """What is at work on the run: checkpoints remember it."""

    @property
    def training(self) -> bool:
        """Whether stage 3 has begun and was stopped."""
        return self.checkpoint.exists() and checkpoint.peek(self.checkpoint).get("stage") == "train"

    @property
    def drawn_from(self) -> Path:
        """Scores that the ticket is drawn from."""
        return self.sensitivity if self.sensitivity.exists() else self.scores

    @classmethod
    def create(cls: type[Folder], path: str | os.PathLike[str], config: Any) -> Folder:
        """A folder for a new run. Nothing is written yet.

        Raises:
            Refused: It exists and holds something.
        """
        folder = Path(path)
        if folder.exists() and (not folder.is_dir() or any(not file.name.startswith(".") for file in folder.iterdir())):
            raise Refused(f"{folder} exists; go on with it by --resume, or choose another --output.")
        return cls(folder, config)

    @classmethod
    def open(cls: type[Folder], path: str | os.PathLike[str]) -> Folder:
        """An existing run.

        Raises:
            Refused: There is no run here, or its `config.yaml` is broken.
        """
        folder = Path(path)
        file = folder / "config.yaml"
        try:
            values = parse(file.read_bytes())
        except OSError:
            raise Refused(f"{folder} is not a run folder: it has no config.yaml that can be read.") from None
        except BadSetting:
            raise Refused(f"{file} is broken; start a new run.") from None
        for kind, name in KINDS.items():
            if kind is not cls.kind and _fits(values, kind) and not _fits(values, cls.kind):
                raise Refused(f"{folder} is a {name} run, which this command is not made for.")
        unknown = sorted(set(values) - {f.name for f in fields(cls.kind)})
        if unknown:
            names = ", ".join(map(shown, unknown[:5]))
            raise Refused(f"{file} has settings this version does not know: {names}; start a new run.")
        try:
            return cls(folder, cls.kind(**typed(values, cls.kind)))
        except BadSetting as error:
            raise Refused(f"{file} is broken: {error}") from None

    def refuse_changed(self, settings: Settings, remedy: str) -> None:
        """A run keeps the settings it was made with.

        Args:
            settings: Those that are wanted.
            remedy: What can be done, the end of the sentence.

        Raises:
            Refused: One of them is another.
        """
        if different := changed(self.config, settings):
            raise Refused(f"run folder {self.path} was made with other settings ({', '.join(different)}); {remedy}")

    def refuse_other_text(self, text: str, where: str | os.PathLike[str]) -> None:
        """A run goes on with the text it began with.

        Args:
            text: SHA-256 of what there is to train on now; checkpoint and search remember theirs.
            where: The place it was read from.

        Raises:
            Refused: It is another.
        """
        begun = [checkpoint.peek(self.checkpoint).get("text")] if self.checkpoint.exists() else []
        begun += [Scores.load(self.scores).info.get("text")] if self.scores.exists() else []
        if any(known not in (None, text) for known in begun):
            raise Refused(
                f"run folder {self.path} was begun on another text than {where} holds now; go on with that one, or "
                "start a new run."
            )

    def write_config(self) -> None:
        """Write the settings beside the results."""
        text = yaml.safe_dump(to_dict(self.config), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "config.yaml", text.encode())

    def read_metrics(self) -> dict[str, Any]:
        """`metrics.json`.

        Raises:
            Refused: It is missing or broken.
        """
        try:
            values = json.loads(self.metrics.read_bytes())
            holds(values, score=dict, parameters=dict, stages=dict, seconds=int | float, flops=int | float)
            return values
        except UNUSABLE:
            raise Refused(f"run folder {self.path} has no metrics.json that can be read; train it first.") from None

    def read_profile(self) -> dict[str, Any]:
        """`profile.json`: by stage, what `train.profile.profile` found; empty where it is not there or broken."""
        try:
            return dict(json.loads(self.profile.read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def write_profile(self, stages: dict[str, Any]) -> None:
        """Write `profile.json`."""
        write_atomically(self.profile, json.dumps(stages, indent=2).encode() + b"\n")

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write `metrics.json`."""
        write_atomically(self.metrics, json.dumps(metrics, indent=2).encode() + b"\n")


def _fits(values: Mapping[str, Any], kind: Any) -> bool:
    """Whether all settings are known to this dataclass."""
    return set(values) <= {field.name for field in fields(kind)}


class Run(RunFolder[Finetune]):
    """The folder of a fine-tuning run."""

    kind = Finetune

    @property
    def goes_on(self) -> str:
        """The command that goes on with a run that is not trained: that of its checkpoint, or of its next stage."""
        name = checkpoint.peek(self.checkpoint).get("command") if self.checkpoint.exists() else None
        if name is None and self.ticket.exists():
            name = "train"
        elif name is None and self.scores.exists() and self.config.method == "ticket":
            name = "draw"
        return f"earlybert {name} {self.path}" if name in ("draw", "train") else resuming(name or "finetune", self.path)


def copy_search(source: Run, target: Run) -> None:
    """Copy the search of a run, its scores, and what they cost, into the folder of another."""
    target.path.mkdir(parents=True, exist_ok=True)
    for file in (source.scores, source.sensitivity, source.history, source.searched, source.steps):
        if file.exists():
            shutil.copy2(file, target.path / file.name)
    if "search" in (profiled := source.read_profile()):
        target.write_profile({"search": profiled["search"]})
    truncate(target.steps, SCORING, LAST)


def default_output(config: Finetune) -> Path:
    """`runs/<data>-<date>-<time>`, not there yet."""
    name = config.task or Path(config.train_file or "run").name.split(".")[0]
    return Path("runs") / f"{name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """What a figure was measured on: hardware, versions, date."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    packages = ("torch", "transformers", "accelerate")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if precision == "bf16" else "fp32",
        "python": platform.python_version(),
        "versions": {"earlybert": __version__, **{package: _version(package) for package in packages}},
    }


def _version(package: str) -> str:
    return _known(lambda: version(package))


def _processor() -> str:
    """Model name of the processor, as the system tells it."""

    def read() -> str:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))

    return _known(read, platform.processor() or platform.machine())


def _known(read: Callable[[], str], otherwise: str = "unknown") -> str:
    try:
        return read()
    except Exception:  # a figure's footnote must not end the run
        return otherwise


def digest(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers, to know theta_0 again."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def began_elsewhere(run: RunFolder[Any], theta_0: nn.Module) -> bool:
    """Whether the search of a run is known to have begun with other weights than these."""
    expected = Scores.load(run.scores, weights=False).info.get("theta_0")
    return expected is not None and expected != digest(theta_0)
