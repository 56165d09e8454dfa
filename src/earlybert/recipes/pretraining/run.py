"""The folder of a pre-training run."""

from __future__ import annotations

from pathlib import Path

from ...anatomy import Refused
from ...config_pretrain import Pretrain
from ...ticket import Scores
from ...train import checkpoint
from ..run import RunFolder
from .bench import Bench


class PretrainRun(RunFolder[Pretrain]):
    """As that of a fine-tuning run; `evaluations.jsonl` has the held-out loss on the way, `checkpoints/` models."""

    kind = Pretrain

    @property
    def models(self) -> Path:
        """Folder of the models that it leaves on the way, `step-N` each."""
        return self.path / "checkpoints"

    def refuse_other_text(self, bench: Bench) -> None:
        """A run goes on with the text it began with.

        Raises:
            Refused: The corpus is another.
        """
        begun = [checkpoint.peek(self.checkpoint).get("text")] if self.checkpoint.exists() else []
        begun += [Scores.load(self.scores).info.get("text")] if self.scores.exists() else []
        if any(text not in (None, bench.text) for text in begun):
            raise Refused(
                f"run folder {self.path} was begun on another corpus than {bench.corpus.folder} holds now; go on with "
                "that one, or start a new run."
            )
