"""The folder of a pre-training run."""

from __future__ import annotations

from pathlib import Path

from ...config.pretrain import Pretrain
from ..run import RunFolder


class PretrainRun(RunFolder[Pretrain]):
    """As that of a fine-tuning run; `evaluations.jsonl` has the held-out loss on the way, `checkpoints/` models."""

    kind = Pretrain

    @property
    def models(self) -> Path:
        """Folder of the models that it leaves on the way, `step-N` each."""
        return self.path / "checkpoints"
