"""What a run came to, in sentences for somebody who will read nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from ..train.steplog import NO_STEPS
from .folder import RunRecord
from .numbers import Resampled, duration


@dataclass(frozen=True)
class Headline:
    """One line, and a few sentences under it."""

    line: str
    sentences: tuple[str, ...]


def headline(run: RunRecord, judged: Resampled) -> Headline:
    """Of one run. What is not known is said, never guessed."""
    if run.only_searched:
        return Headline("Searched, not trained", (_so_far(run),))
    if run.metrics is None:
        return Headline("This run is not finished", (_so_far(run),))
    if run.compare is not None:
        return _compared(run, judged)
    score = _score(run, judged)
    if run.method != "ticket":
        return Headline(
            f"{score}, {duration(run.metrics['seconds'])} of training", (f"Method: {run.method}.", smaller(run))
        )
    return Headline(
        f"{score}, {duration(run.metrics['seconds'])} of training",
        (
            smaller(run),
            "What it saved is not known: no dense model was trained beside it, nor its honest rival, the dense model "
            "stopped at the same cost. earlybert finetune --compare trains both.",
        ),
    )


def _compared(run: RunRecord, judged: Resampled) -> Headline:
    assert run.metrics is not None
    assert run.compare is not None
    saved, rows = run.compare["saved"], run.compare["rows"]
    dense, rival, name = rows["dense"], rows["dense_same_flops"], run.metrics["headline"]
    if saved["time"] >= 0:
        line = f"{saved['time']:.0%} of the training time saved"
    else:
        line = f"Nothing saved: {1 - saved['time']:.2f} times the dense training time"
    sentences = [
        f"{_score(run, judged)} after {duration(run.metrics['seconds'])} of training; the dense model reached "
        f"{dense['score'][name]:.3f} after {duration(dense['seconds'])}.",
        f"The honest rival, the dense model stopped at the same cost, reached {rival['score'][name]:.3f}"
        + _verdict(run, judged),
        smaller(run),
    ]
    return Headline(line, tuple(sentences))


def _verdict(run: RunRecord, judged: Resampled) -> str:
    if judged.difference is None:
        return "; whether that is a difference is not known without the predictions of both."
    mean, low, high = (100 * judged.difference[key] for key in ("mean", "low", "high"))
    rows = run.metrics["validation_rows"] if run.metrics else 0
    if low <= 0 <= high:
        verdict = f"one seed and {rows:,} rows cannot tell them apart"
    else:
        verdict = f"the ticket is {'better' if mean > 0 else 'worse'} on these rows, with one seed"
    return f": the ticket is {mean:+.1f} points from it (95 % interval {low:+.1f} to {high:+.1f}), so {verdict}."


def _score(run: RunRecord, judged: Resampled) -> str:
    assert run.metrics is not None
    name = str(run.metrics["headline"])
    around = judged.intervals.get(name)
    interval = f" (95 % interval {around[0]:.3f} to {around[1]:.3f})" if around else ""
    return f"{name[:1].upper()}{name[1:]} {run.metrics['score'][name]:.3f}{interval}"


def smaller(run: RunRecord) -> str:
    """What is left of a finished run's model."""
    assert run.metrics is not None
    before, after = (run.metrics["parameters"][when] for when in ("before", "after"))
    sentence = f"{1 - after / before:.0%} of the parameters are gone" if after < before else "No parameter is gone"
    if run.ticket is not None:
        heads, neurons = (run.ticket.layers * size for size in (run.ticket.num_heads, run.ticket.num_neurons))
        sentence += (
            f": {run.ticket.heads_kept} of {heads} heads and {run.ticket.neurons_kept:,} of {neurons:,} neurons stay"
        )
    return sentence + "."


def _so_far(run: RunRecord) -> str:
    if not run.stages:
        return "No step of it was logged."
    done = ", ".join(
        f"{stage} {sums.steps} step{'s' if sums.steps != 1 else ''}"
        for stage, sums in run.stages.items()
        if stage not in NO_STEPS
    )
    drawn = " and its ticket is drawn" if run.ticket is not None else ""
    return f"So far: {done}{drawn}. It has no score yet."
