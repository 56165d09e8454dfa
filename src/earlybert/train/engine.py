"""Which step runs: the plain one, or the fastest that this model and this machine allow."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ..anatomy import Refused, of
from ..tasks.batches import Batch
from ..ticket import Gates
from .fast import RaggedStep
from .lamb import Lamb
from .masked import MaskedStep, RaggedMaskedStep
from .ragged import no_varlen
from .ranks import ALONE, Ranks
from .rehearsal import rehearse
from .step import EagerStep

Engine = Literal["eager", "fast"]

UNTRIED = "they have not been tried with several processes."

log = logging.getLogger("earlybert")


def chosen(engine: Literal["auto", "eager", "fast"], device: torch.device, world: int = 1) -> Engine:
    """What `auto` means on this device: the fast step on a CPU, and on a GPU, where it is rehearsed (`build`).

    Args:
        engine: Of the settings.
        device: Of the model.
        world: Processes of the job; several on GPUs have not been run with the fast step.
    """
    if engine == "auto":
        return "fast" if device.type == "cpu" or (device.type == "cuda" and world == 1) else "eager"
    return engine


def build(
    engine: Engine,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    exact: bool = False,
    compile: bool = False,
    static: bool = True,
    masked: bool = False,
    sample: Callable[[], Sequence[Batch]] | None = None,
    **settings: Any,
) -> EagerStep:
    """A step for this model on this machine.

    What cannot run falls back by one level, with one line that says what was lost and why.

    Args:
        engine: `eager` is the reference; `fast` computes no padding, and on CUDA is one graph, or one for each
            micro-batch and one for the update.
        model: On its device.
        optimizer: Over its parameters; for a graph on CUDA, `torch.optim.AdamW` or `Lamb`.
        exact: Keep dropout on attention probabilities in the fast step.
        compile: Let `torch.compile` fuse the element-wise work of the fast step on CUDA.
        static: Whether every step is the same computation on plain weights; without it there is no CUDA graph.
        masked: Batches are those of `data.stream`: masked-language modelling.
        sample: Gives micro-batches of one step, on which a fast step on CUDA is rehearsed (`train.rehearsal`); one
            that is found wrong falls back, too. Without it, and in several processes, nothing is rehearsed.
        **settings: As `EagerStep`.

    Raises:
        Refused: The engine is neither, or the model has no head for these batches.
        Unusable: A step has failed in its rehearsal and taken the device along.
    """
    if engine not in ("eager", "fast"):
        raise Refused(f"the engine must be eager or fast, got {engine!r}.")
    cut_up = settings.get("shard")
    device = cut_up or _device(model)
    plain, packed = (MaskedStep, RaggedMaskedStep) if masked else (EagerStep, RaggedStep)
    if engine == "eager":
        return plain(model, optimizer, **settings)

    alone = settings.get("ranks", ALONE).world == 1
    rows = sample() if sample is not None and device.type == "cuda" and alone else []

    def doubt(step: EagerStep) -> str | None:
        """What a rehearsal finds wrong with a step."""
        return rehearse(step, lambda mode: plain(model, optimizer, **{**settings, "precision": mode}), rows)

    try:
        if device.type == "cuda":
            lost = _no_graph(model, optimizer, static=static, masked=masked, **settings)
            for compiled in [] if lost else [True, False] if compile else [False]:
                step = _graphed(masked)(model, optimizer, exact=exact, compile=compiled, **_alone(settings))
                lost = doubt(step)
                if lost is None:
                    return step
                del step
                gc.collect()  # with its copies of the weights; their memory is wanted
                if compiled:
                    log.warning("the step runs without torch.compile: %s", lost)
            log.warning("the step runs without CUDA graphs and fused kernels: %s", lost)
        step = packed(model, optimizer, exact=exact, **settings)
        if wrong := doubt(step):
            raise Refused(wrong)
        return step
    except Refused as error:
        log.warning("the step computes padding: %s", error)
        return plain(model, optimizer, **settings)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _graphed(masked: bool) -> Callable[..., EagerStep]:
    """The step for CUDA; it imports Triton, which a machine without a GPU need not have."""
    if masked:
        from .cuda.graphed_masked import GraphedMaskedStep

        return GraphedMaskedStep
    from .cuda.graphed import GraphedStep

    return GraphedStep


def _alone(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a step on CUDA; several processes capture no graphs."""
    ranks = settings.get("ranks", ALONE)
    if ranks.world == 1:
        return settings
    if ranks.main:
        log.warning("the step runs without CUDA graphs: %s", UNTRIED)
    return {**settings, "graphs": 0}


def _no_graph(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    static: bool = True,
    masked: bool = False,
    precision: str = "no",
    gates: Gates | None = None,
    shard: torch.device | None = None,
    ranks: Ranks = ALONE,
    **_: Any,
) -> str | None:
    """Why the graphed step cannot run here, or None; arguments are those of `build`."""
    if not masked and ranks.world > 1:
        return UNTRIED
    if shard is not None:
        return "the model is cut up over processes."
    if gates is not None and not gates.anatomy.whole:
        return "the model was cut before, and their coefficients want layers of one width."
    if not static:
        return "this method changes its steps."
    groups = optimizer.param_groups
    if not isinstance(optimizer, torch.optim.AdamW | Lamb):
        return "they are made for AdamW and LAMB."
    if any(group.get("amsgrad") or group.get("maximize") for group in groups):
        return "they know no amsgrad and no maximize."
    if len({(tuple(group["betas"]), group["eps"]) for group in groups}) > 1:
        return "they have one pair of betas and one eps for all groups of the optimizer."
    if precision != "bf16":
        return "they need bf16 (--precision bf16)."
    if of(model).repeats:
        return "the model runs its layers more than once, which they were not made for."
    try:
        import triton  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError:
        return "triton is not installed; it comes with torch for CUDA."
    if why := no_varlen(of(model).head_size):
        return why
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        return "the parameters are not fp32."
    return None
