"""Stage 2 alone: a ticket from the scores of a run, in its folder or in a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..anatomy import Refused
from ..config.finetune import Finetune
from ..config.methods import METHODS, RIVALS
from ..config.recipe import BUDGET
from ..ticket import Scores
from ..ticket.files import disk_errors, half_folder
from .display import say
from .drawing import describe, draw_stage, draw_ticket, head_price_of
from .lock import locked
from .machine import refuse_launcher
from .run import Run, copy_search, resuming


def draw(path: str, *, settings: dict[str, Any], into: str | None) -> Run:
    """Stage 2 alone: draw a ticket from the scores of a run.

    Args:
        path: A run folder that was searched.
        settings: Drawing settings that replace those of the run.
        into: A new run folder for this ticket, so that one search serves many.
    """
    refuse_launcher("earlybert draw")
    run = Run.open(path)
    with locked(run.path):
        return _draw(run, settings=settings, into=into)


def _draw(run: Run, *, settings: dict[str, Any], into: str | None) -> Run:
    _refuse_drawing(run, again=into is not None)
    scores = Scores.load(run.drawn_from)
    config = replace(run.config, **_one_budget(settings))
    draw_ticket(config, scores, head_price=head_price_of(config))  # a refusal changes nothing
    if into is not None:
        run = _copy_search(run, Path(into), config)
    elif run.model.exists() or run.training:
        done = "has already trained" if run.model.exists() else "has begun to train"
        raise Refused(f"{run.path} {done} its ticket; draw another one into a new folder with --into.")
    else:
        run = Run(run.path, config)
        run.write_config()
    describe(draw_stage(run, scores))
    say(f"next: earlybert train {run.path}")
    return run


def _refuse_drawing(run: Run, *, again: bool) -> None:
    """What `draw` makes has to be what the run's method says, and `train` has to be able to go on with it.

    Args:
        run: To draw from.
        again: Whether into another folder.

    Raises:
        Refused: It would not.
    """
    path, config = run.path, run.config
    method, kind = config.method, METHODS[config.method]
    if kind.dense or method in RIVALS:
        raise Refused(f"{path} is of method {method}, which draws no ticket.")
    if kind.like:
        raise Refused(
            f"{path} is of method {method}, which makes its ticket out of another run's; draw from that run, "
            f"{config.like}."
        )
    if not run.scores.exists() or (method.endswith("_searched") and not run.sensitivity.exists()):
        what, command = ("search", run.goes_on) if method == "ticket" else ("scoring", resuming("finetune", path))
        raise Refused(f"{path} has not finished its {what}; run {command} first.")
    if again and config.weights == "keep" and not run.searched.exists():
        instead = "search again, and draw into other folders before you train"
        if method != "ticket":
            instead = "run earlybert finetune again with what is to be drawn"
        raise Refused(
            f"{path} went on from its searched weights (weights: keep) and, being finished, has them no more, so "
            f"another ticket of it could not be trained; {instead}."
        )


def _one_budget(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Drawing settings, where those that say how much goes by kind take the place of a run's `joint`.

    Raises:
        Refused: They say both.
    """
    by_kind = [name for name in BUDGET if name in settings]
    if by_kind and settings.get("joint") is not None:
        raise Refused(f"joint says what goes of heads and neurons together; give it or {by_kind[0]}, not both.")
    return {"joint": None, **settings} if by_kind else dict(settings)


def _copy_search(run: Run, into: Path, config: Finetune) -> Run:
    """A new run folder with the same search; it is there whole or not at all."""
    if into.exists():
        raise Refused(f"{into} exists; choose another --into.")
    with disk_errors(into), half_folder(into) as half:
        copied = Run(half, config)
        copy_search(run, copied)
        copied.write_config()
        half.rename(into)
    return Run(into, config)
