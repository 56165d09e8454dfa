"""What a YAML file or a flag may say of pre-training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .checks import BadSetting, above_zero, between
from .finetune import Bookkeeping, Drawing


@dataclass(frozen=True, kw_only=True)
class Text:
    """The text, and what an example is."""

    corpus: str | None = None
    """Folder that `earlybert prepare` wrote."""
    pairs: bool = True
    """Sentence pairs and next-sentence prediction, as BERT; else rows packed with full sentences."""
    across: bool = True
    """Whether packed rows go on into the next document."""
    whole_words: bool = False
    """Mask all tokens of a word or none."""
    eval_rows: int = 4096
    """Rows of held-out documents that are scored, from the start of the corpus."""

    def __post_init__(self) -> None:
        between("eval_rows", self.eval_rows, 1)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The model, a BERT with random weights; its vocabulary is the corpus's."""

    layers: int = 12
    """Transformer layers."""
    hidden: int = 768
    """Features of a token."""
    attention_heads: int = 12
    """Attention heads of a layer."""
    intermediate: int = 3072
    """Intermediate neurons of a layer."""
    positions: int = 512
    """Longest row in tokens that the model will ever take."""
    dropout: float = 0.1
    """Of activations and of attention probabilities."""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "attention_heads", "intermediate", "positions"):
            between(name, getattr(self, name), 1)
        between("dropout", self.dropout, 0, 0.999)
        if self.hidden % self.attention_heads:
            raise BadSetting(f"hidden {self.hidden} is not a multiple of attention_heads {self.attention_heads}.")


@dataclass(frozen=True, kw_only=True)
class Course:
    """How long, at what length and at what rate (Sec. 4.1, App. B; NVIDIA's recipe for LAMB)."""

    steps: int = 8601
    """Optimizer steps of the dense run, both phases together."""
    second: int | float = 0.1
    """Of them those in phase 2: a share (Sec. 4.1: 1/10) or a count (NVIDIA: 1563). 0: there is one phase."""
    minutes: float | None = None
    """Wall-clock budget instead of steps, search included; the schedules follow the time that has gone."""
    length: int = 128
    """Tokens of a row in phase 1."""
    batch: int = 65_536
    """Rows of an optimizer step in phase 1, over all processes."""
    rows: int = 64
    """Rows of a micro-batch in phase 1; the rest of the batch is accumulated."""
    lr: float = 6e-3
    """Highest learning rate of phase 1."""
    warmup: float = 0.2843
    """Share of phase 1 over which the learning rate rises."""
    second_length: int = 512
    """Tokens of a row in phase 2."""
    second_batch: int = 32_768
    """Rows of an optimizer step in phase 2, over all processes."""
    second_rows: int = 16
    """Rows of a micro-batch in phase 2."""
    second_lr: float = 4e-3
    """Highest learning rate of phase 2."""
    second_warmup: float = 0.128
    """Share of phase 2 over which the learning rate rises."""

    def __post_init__(self) -> None:
        for name in ("steps", "length", "batch", "rows", "second_length", "second_batch", "second_rows"):
            between(name, getattr(self, name), 1)
        for name in ("lr", "second_lr"):
            above_zero(name, getattr(self, name))
        for name in ("warmup", "second_warmup"):
            between(name, getattr(self, name), 0, 0.999)
        if isinstance(self.second, float) and not 0 <= self.second < 1:
            raise BadSetting(f"second must be a count or a share in [0, 1), got {self.second!r}.")
        between("second", self.second, 0, self.steps - 1)
        if self.minutes is not None:
            above_zero("minutes", self.minutes)
            if isinstance(self.second, int) and self.second > 0:
                raise BadSetting(f"with minutes, second is a share of the time in [0, 1), got {self.second!r}.")


@dataclass(frozen=True, kw_only=True)
class Optimising:
    """What search and training share."""

    weight_decay: float = 0.01
    """LAMB decay of the matrices; biases, LayerNorm weights and coefficients are not decayed."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm, coefficients left out."""
    precision: Literal["auto", "bf16", "no"] = "auto"
    """Of forward passes; auto is bf16 where the hardware computes in it, no is fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    engine: Literal["auto", "eager", "fast"] = "auto"
    """The step: eager is the reference; fast computes no padding; auto is fast on a CPU and on one GPU, where it is
    rehearsed first (docs/limits.md)."""
    exact: bool = False
    """Keep dropout on attention probabilities in the fast step, with padded attention."""
    shard: Literal["none", "full"] = "none"
    """Over the processes of a job: none holds the model whole in each; full cuts it up (FSDP2)."""
    seed: int = 42
    """Of the random weights, dropout, data order, masks and tie-breaking."""

    def __post_init__(self) -> None:
        between("weight_decay", self.weight_decay, 0)
        above_zero("max_grad_norm", self.max_grad_norm)
        between("seed", self.seed, 0, 2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class EarlySearch:
    """Stage 1 in the first steps of phase 1 (Sec. 3.2, 4.1), and how long its ticket is trained."""

    method: Literal["ticket", "dense", "random"] = "ticket"
    """What to train: the early-bird ticket, the full model, or a random ticket of the same budget."""
    search_steps: int = 400
    """Length of the search in optimizer steps (Sec. 4.1: 400); they come on top of the training."""
    l1_heads: float = 1e-4
    """lambda of Eq. 4 for heads (App. B: 1e-4)."""
    l1_neurons: float = 1e-4
    """lambda of Eq. 4 for intermediate neurons (App. B: 1e-4)."""
    gate_lr: float | None = None
    """Learning rate of the coefficients; the model's when not given (paper)."""
    share: float = 0.8
    """Share of the steps of each phase in which a ticket is trained (Sec. 4.1: 0.8); a budget of time is not cut."""

    def __post_init__(self) -> None:
        between("search_steps", self.search_steps, 1)
        between("l1_heads", self.l1_heads, 0)
        between("l1_neurons", self.l1_neurons, 0)
        if self.gate_lr is not None:
            between("gate_lr", self.gate_lr, 0)
        above_zero("share", self.share)
        between("share", self.share, 0, 1)


@dataclass(frozen=True, kw_only=True)
class EarlyDrawing(Drawing):
    """Stage 2 (Sec. 3.2): how much goes."""

    neurons: int | float = 0.3
    """Intermediate neurons to remove: a count (in all, or per layer) or a fraction. Paper: 0.3, which is 30 %."""

    def __post_init__(self) -> None:
        Drawing.__post_init__(self)
        if self.joint is not None:
            raise BadSetting("joint is for scores in units of loss; pre-training draws by coefficients: use neurons.")


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Models that a run leaves on the way, as ordinary folders `checkpoints/step-N` that load and can be fine-tuned."""

    save_every: int = 0
    """Optimizer steps of the training between them; 0 writes the model at the end only."""
    keep_models: int = 2
    """The newest so many stay; 0 keeps all."""

    def __post_init__(self) -> None:
        between("save_every", self.save_every, 0)
        between("keep_models", self.keep_models, 0)


PRETRAIN_PARTS = (Text, Architecture, Course, Optimising, EarlySearch, EarlyDrawing, Bookkeeping, Keeping)
"""In the order in which `--help` lists them."""


@dataclass(frozen=True, kw_only=True)
class Pretrain(Text, Architecture, Course, Optimising, EarlySearch, EarlyDrawing, Bookkeeping, Keeping):
    """One pre-training run."""

    def __post_init__(self) -> None:
        for part in PRETRAIN_PARTS:
            part.__post_init__(self)
        longest = max(self.length, self.second_length if self.second else 0)
        if longest > self.positions:
            raise BadSetting(
                f"rows of {longest} tokens are longer than the model's {self.positions} positions; raise positions."
            )
