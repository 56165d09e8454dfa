"""What a YAML file or a flag may say of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .checks import BadSetting, above_zero, between, named
from .methods import METHODS, RIVALS

Scope = Literal["layer", "global"]
LogMode = Literal["auto", "bars", "plain", "json", "quiet"]
"""What a command shows while it runs (docs/live.md)."""
TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "comet_ml": ("comet_ml",),
    "aim": ("aim",),
    "mlflow": ("mlflow",),
    "clearml": ("clearml",),
    "dvclive": ("dvclive",),
    "swanlab": ("swanlab",),
}
"""Trackers that `accelerate` knows, and packages of which each needs one."""


DEFAULT_LENGTH, LENGTHS = 128, {"squad": 384, "qamr": 384}
"""Longest rows in tokens where none are given, and for which tasks it is another (reference code)."""


NO_RESULT = ("offline", "log_every", "profile_steps", "tracker")
"""Settings that change no result: a resumed run may have others."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data to train and to validate on."""

    task: str | None = None
    """GLUE task (cola sst2 mrpc stsb qqp mnli qnli rte wnli), squad, or bbc, the packaged corpus (docs/tasks.md)."""
    data_dir: str | None = None
    """Folder with <task>/train.jsonl.gz and <task>/validation.jsonl.gz; the hub when not given."""
    train_file: str | None = None
    """Your own .csv, .tsv or .jsonl file (or .gz of it), instead of a task."""
    validation_file: str | None = None
    """The same for validation; a stratified tenth of train is held out when not given."""
    text: str = "text"
    """Column of the text in your own files."""
    text_pair: str | None = None
    """Column of the second text, for tasks on two texts."""
    label: str = "label"
    """Column of the label in your own files."""
    problem: Literal["auto", "classification", "regression"] = "auto"
    """What your labels are; auto takes numbers with fractions for values to regress on."""
    max_length: int = 0
    """Longest row in tokens; longer ones are cut (squad: go over several windows). 0: 384 for squad, 128 for others."""
    truncate: bool = False
    """Accept data in which every single row is longer than max_length (rows that are longer are always cut)."""
    train_rows: int | None = None
    """Train on a random sub-sample of so many rows, classes in proportion."""
    validation_rows: int | None = None
    """Validate on a random sub-sample of so many rows."""
    data_seed: int = 42
    """Of sub-samples and of rows held out; runs that are compared share it."""
    tuning: bool = False
    """Validate on a part of train that shares no text with the rest, and leave the validation data alone."""
    stride: int = 128
    """squad: tokens that neighbouring windows on a long context share (reference code: 128)."""
    n_best: int = 20
    """squad: starts and ends of an answer that are combined (reference code: 20)."""
    max_answer_length: int = 30
    """squad: longest answer in tokens (reference code: 30)."""
    bad_answers: Literal["refuse", "drop"] = "refuse"
    """squad: what to do when an answer is not where its answer_start says; drop leaves those questions out."""
    offline: bool = False
    """Load names from the hub's cache only; never ask the network."""

    def __post_init__(self) -> None:
        if self.max_length == 0:
            object.__setattr__(self, "max_length", LENGTHS.get(self.task or "", DEFAULT_LENGTH))
        between("max_length", self.max_length, 4)
        between("stride", self.stride, 0)
        between("n_best", self.n_best, 1)
        between("max_answer_length", self.max_answer_length, 1)
        between("data_seed", self.data_seed, 0, 2**31 - 1)
        for name in ("train_rows", "validation_rows"):
            if getattr(self, name) is not None:
                between(name, getattr(self, name), 2)


@dataclass(frozen=True, kw_only=True)
class Training:
    """The model, and what search, ticket and dense training share."""

    model: str = "minilm"
    """A model folder or hub name; minilm is the packaged all-MiniLM-L6-v2."""
    batch_size: int = 32
    """Rows per micro-batch."""
    accumulate: int = 1
    """Micro-batches per optimizer step."""
    weight_decay: float = 0.0
    """AdamW decay of the matrices; the reference code uses 0. Coefficients are never decayed."""
    warmup: float = 0.0
    """Share of a schedule's steps over which the learning rate rises; the reference code uses 0."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm, coefficients left out."""
    precision: Literal["auto", "bf16", "no"] = "auto"
    """Of forward passes; auto is bf16 where the hardware computes in it, no is fp32. Values are predicted in fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    engine: Literal["auto", "eager", "fast"] = "auto"
    """The step: eager is the reference; fast computes no padding, and on CUDA is one graph (benchmarks/README.md);
    auto is fast on a CPU and on one GPU, where it is rehearsed first (docs/limits.md)."""
    exact: bool = False
    """Keep dropout on attention probabilities in the fast step, with padded attention."""
    compile: bool = False
    """Let torch.compile fuse the fast step's element-wise work on CUDA, instead of the kernels that come with it."""
    seed: int = 42
    """Of the head's initialisation, dropout, data order and tie-breaking."""

    def __post_init__(self) -> None:
        between("batch_size", self.batch_size, 1)
        between("accumulate", self.accumulate, 1)
        between("weight_decay", self.weight_decay, 0)
        between("warmup", self.warmup, 0, 1)
        between("seed", self.seed, 0, 2**31 - 1)
        above_zero("max_grad_norm", self.max_grad_norm)


@dataclass(frozen=True, kw_only=True)
class Searching:
    """Stage 1 (Sec. 3.2): where the coefficients come from."""

    recipe: Literal["default", "paper", "best"] = "default"
    """paper and best search exactly search_epochs; default searches 100 steps where that is less, and stops where the
    masks settle; best also sets how to score, cut and go on where nothing else is said (docs/compare.md)."""
    search_epochs: float = 0.2
    """Length of the search in epochs (Sec. 4.2: 0.2)."""
    search_steps: int | None = None
    """Length of the search in optimizer steps, instead of epochs; exact."""
    l1_heads: float = 1e-4
    """lambda of Eq. 4 for heads (Sec. 4.2: 1e-4)."""
    l1_neurons: float = 1e-4
    """lambda of Eq. 4 for intermediate neurons (Sec. 4.2: 1e-4)."""
    gate_lr: float | None = None
    """Learning rate of the coefficients; the model's when not given (paper)."""
    score_batches: int = 100
    """Micro-batches that Taylor, Fisher and surgeon scores are taken from."""
    settle_threshold: float = 0.08
    """Mask distance between checks under which the mask counts as settled (docs/stopping.md)."""
    settle_window: int = 3
    """Distances in a row that have to be under the threshold."""
    settle_min_steps: int = 60
    """Optimizer steps before the first check."""

    def __post_init__(self) -> None:
        between("search_epochs", self.search_epochs, 0)
        if self.search_steps is not None:
            between("search_steps", self.search_steps, 1)
        if self.gate_lr is not None:
            between("gate_lr", self.gate_lr, 0)
        between("l1_heads", self.l1_heads, 0)
        between("l1_neurons", self.l1_neurons, 0)
        between("score_batches", self.score_batches, 1)
        between("settle_threshold", self.settle_threshold, 0, 1)
        between("settle_window", self.settle_window, 1)
        between("settle_min_steps", self.settle_min_steps, 0)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Stage 2 (Sec. 3.2): how much goes."""

    heads: int | float = 1 / 3
    """Heads to remove: a count (per layer, or in all when global) or a fraction in [0, 1). Paper: 4 of 12, 6 of 16."""
    neurons: int | float = 0.4
    """Intermediate neurons to remove: a count (in all, or per layer) or a fraction. Paper: 0.4, which is 40 %."""
    heads_scope: Scope = "layer"
    """Compare heads within their layer (paper) or over all layers."""
    neurons_scope: Scope = "global"
    """Compare neurons over all layers (paper) or within each."""
    joint: float | None = None
    """Remove this share of FLOPs by one ranking of heads and neurons, instead of each (taylor and fisher methods)."""
    align: int = 64
    """Each layer keeps a multiple of this many neurons; 1 gives the paper's raw widths."""

    def __post_init__(self) -> None:
        between("align", self.align, 1)
        if self.joint is not None and not 0 <= self.joint < 1:
            raise BadSetting(f"joint must be a share in [0, 1), got {self.joint!r}.")
        for name in ("heads", "neurons"):
            value = getattr(self, name)
            if isinstance(value, float) and not 0 <= value < 1:
                raise BadSetting(f"{name} to remove must be a count or a fraction in [0, 1), got {value!r}.")
            between(name, value, 0)


@dataclass(frozen=True, kw_only=True)
class Ticketing:
    """Stage 3 (Sec. 3.2, 4.1): how the ticket is trained."""

    weights: Literal["reset", "keep"] = "reset"
    """Start the ticket from theta_0 (paper), or go on from the searched weights."""
    epochs: float = 2.0
    """Epochs of the ticket (Sec. 4.1: 2); with weights=keep the search is part of them."""
    lr: float = 4e-5
    """Learning rate of the ticket (Sec. 4.1: 4e-5), and of the dense model stopped at its cost."""
    refit: int = 0
    """Batches on which W_O and W_2 are refitted by least squares after the cut; 0 does not."""
    cuts: int = 1
    """With weights=keep, take out what goes in so many cuts, equal shares, the later ones in the first 30 %."""
    rewarm: int = 0
    """With weights=keep, steps after the cut over which the learning rate rises to its schedule again."""
    match: float = 0.0
    """Weight of a loss that pulls the ticket's hidden states to the searched model's; 0 does not."""
    match_share: float = 0.1
    """Share of the ticket's steps, its first, that have this loss."""

    def __post_init__(self) -> None:
        above_zero("epochs", self.epochs)
        above_zero("lr", self.lr)
        between("cuts", self.cuts, 1)
        between("rewarm", self.rewarm, 0)
        between("match", self.match, 0)
        between("match_share", self.match_share, 0, 1)
        if self.refit != 0:
            between("refit", self.refit, 2)


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The dense run, whose schedule the search follows."""

    method: str = "ticket"
    """What to train: ticket, dense, or a baseline (earlybert compare --list)."""
    like: str | None = None
    """Run folder that a baseline takes its cost from, or of a ticket its widths or its scores."""
    dense_epochs: float = 3.0
    """Epochs of the dense run (Sec. 4.1: 3)."""
    dense_lr: float = 2e-5
    """Learning rate of the dense run and of the search (Sec. 4.1: 2e-5)."""
    dense_steps: int | None = None
    """Length of the dense run in optimizer steps, instead of epochs."""

    def __post_init__(self) -> None:
        named(self.method, METHODS, "method")
        if METHODS[self.method].like and self.like is None:
            raise BadSetting(f"method {self.method} needs the run folder that it is like in --like.")
        above_zero("dense_epochs", self.dense_epochs)
        above_zero("dense_lr", self.dense_lr)
        if self.dense_steps is not None:
            between("dense_steps", self.dense_steps, 1)


@dataclass(frozen=True, kw_only=True)
class Bookkeeping:
    """What is written down, and how often."""

    checkpoint_every: int = 500
    """Optimizer steps between checkpoints; 0 writes none within a stage, unless it is stopped."""
    eval_every: int = 0
    """Optimizer steps between evaluations while training, into evaluations.jsonl; 0 evaluates at the end only."""
    log_every: int = 50
    """Optimizer steps between readings of losses and times, which wait for the device."""
    profile_steps: int = 4
    """Extra steps at the end of search and training, timed in parts and then undone (docs/report.md); 0 takes none."""
    tracker: str = "none"
    """Also tell tensorboard, wandb, or another tracker of accelerate, several with commas (docs/live.md); or none."""

    def __post_init__(self) -> None:
        between("checkpoint_every", self.checkpoint_every, 0)
        between("eval_every", self.eval_every, 0)
        between("log_every", self.log_every, 1)
        between("profile_steps", self.profile_steps, 0)
        for name in trackers_of(self.tracker):
            named(name, TRACKERS, "tracker")


PARTS = (Data, Training, Searching, Drawing, Ticketing, Dense, Bookkeeping)
"""In the order in which `--help` lists them."""


@dataclass(frozen=True, kw_only=True)
class Finetune(Data, Training, Searching, Drawing, Ticketing, Dense, Bookkeeping):
    """One fine-tuning run."""

    def __post_init__(self) -> None:
        for part in PARTS:
            part.__post_init__(self)
        kind = METHODS[self.method]
        if self.weights == "keep" and not (kind.keeps or kind.dense):
            raise BadSetting(f"method {self.method} has no searched weights to keep; use weights: reset.")
        if self.match and not (kind.keeps or kind.dense):
            raise BadSetting(f"method {self.method} has no searched model to match; use match: 0.")
        if self.joint is not None and not kind.joint:
            raise BadSetting(
                f"joint ranks heads and neurons together, and method {self.method} scores them in no common unit; use "
                "heads and neurons, or a taylor or fisher method."
            )
        cuts_nothing = kind.dense or self.method in RIVALS  # a rival has its ticket's settings
        if self.cuts > 1 and not cuts_nothing:
            if not kind.rescored:
                raise BadSetting(
                    f"cuts {self.cuts} needs scores that can be taken again in training, and those of method "
                    f"{self.method} cannot; use cuts: 1, or taylor_searched, fisher_searched or surgeon_searched."
                )
            if self.weights == "reset":
                raise BadSetting(f"cuts {self.cuts} goes on from the weights between the cuts; use weights: keep.")
        if self.rewarm and self.weights == "reset":
            raise BadSetting("rewarm is for weights: keep; with weights: reset use warmup.")


def trackers_of(setting: str) -> tuple[str, ...]:
    """Names in a `tracker` setting."""
    return tuple(name.strip() for name in setting.split(",") if name.strip() not in ("", "none"))
