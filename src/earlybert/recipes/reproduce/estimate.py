"""What a table would take at the paper's scale, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from ...baselines import imp
from ...config.finetune import Finetune
from ...config.methods import METHODS
from ...config.recipe import with_recipe
from ..comparison.comparison import Comparison
from ..comparison.forecast import STEP_ON_H100

ROWS = {
    "cola": 8551,
    "sst2": 67349,
    "mrpc": 3668,
    "stsb": 5749,
    "qqp": 363846,
    "mnli": 392702,
    "qnli": 104743,
    "rte": 2490,
    "wnli": 635,
    "squad": 88524,
}
"""Training rows on the hub; windows of 384 tokens for SQuAD."""
TOKENS = {
    "cola": 11,
    "sst2": 13,
    "mrpc": 53,
    "stsb": 28,
    "qqp": 30,
    "mnli": 40,
    "qnli": 49,
    "rte": 67,
    "wnli": 37,
    "squad": 160,
}
"""Mean tokens of a row with BERT's tokenizer."""
PER_TOKEN = 1.15e-6
"""Seconds a token of a fast dense step of BERT-base on one H100, on top of `STEP_ON_H100` (benchmarks/README.md)."""
LARGE = 2.76
"""A step of BERT-large over one of BERT-base there."""
TICKET, SEARCH = 0.76, 1.39
"""A ticket's step, and a step of the search, over a dense one there."""
PARAMETERS = {"base": (110e6, 12, 768), "large": (340e6, 24, 1024)}
STATE_BYTES, ACTIVATION_BYTES = 18, 34
"""A parameter: fp32 weight, gradient and two moments, and a bf16 copy. An activation, a token, layer and feature
(Korthikanti et al. 2022, without attention scores)."""


@dataclass(frozen=True)
class Estimate:
    """Of all runs of a table."""

    runs: int
    hours: float
    """Of one H100, by steps that were measured there; evaluation not counted."""
    gigabytes: float
    """Peak GPU memory of one run, about."""

    def __str__(self) -> str:
        """In a sentence."""
        return (
            f"{self.runs} runs, about {self.hours:,.1f} hours of one H100 (by steps measured there, training only) "
            f"and {self.gigabytes:.0f} GB of its memory"
        )


def estimate(comparison: Comparison) -> Estimate:
    """Of a fine-tuning table on BERT-base or -large."""
    hours = gigabytes = 0.0
    cells = comparison.cells()
    for cell in cells:
        config = Finetune(**with_recipe({**cell.settings, **cell.needs}))
        size = "large" if "large" in config.model else "base"
        task = str(config.task)
        tokens = min(TOKENS[task], config.max_length) * config.batch_size
        step = (STEP_ON_H100 + PER_TOKEN * tokens) * (LARGE if size == "large" else 1.0)
        steps = (config.train_rows or ROWS[task]) / config.batch_size * _epochs(config)
        hours += steps * step / 3600
        parameters, layers, features = PARAMETERS[size]
        peak = STATE_BYTES * parameters + ACTIVATION_BYTES * tokens * layers * features
        gigabytes = max(gigabytes, peak / 1e9)
    return Estimate(len(cells), hours, gigabytes)


def _epochs(config: Finetune) -> float:
    """What a run takes, in epochs of dense steps; what is like a ticket pays for that one's search."""
    kind = METHODS[config.method]
    if config.method == "imp":
        return imp.ROUNDS * config.dense_epochs
    if kind.dense:
        return config.dense_epochs
    searched = config.search_epochs if kind.searches or kind.like else 0.0
    kept = searched if kind.searches and config.weights == "keep" else 0.0
    return searched * SEARCH + (config.epochs - kept) * TICKET
