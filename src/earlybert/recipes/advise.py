"""Is a ticket worth it here? Both steps timed on this machine and this data, and what follows from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..anatomy import of
from ..config.finetune import Finetune
from ..config.methods import METHODS, untimed
from ..config.recipe import with_recipe
from ..cost import Cost, count
from ..report.sheet import Sheet
from ..ticket import apply
from .display import display, say
from .drawing import stand_in
from .finetuning.bench import SHARED_ORDER, Bench
from .finetuning.beside import Beside, beside
from .finetuning.plan import Plan, advice, plan
from .finetuning.timing import contenders, in_turns, inference_seconds, some_batches

FASTER = 0.97
"""A ticket's step has to take less than this share of a dense one to count as faster."""
SAMPLED_STEPS = 50
"""Steps whose shapes stand for the mean FLOPs of a step."""


@dataclass(frozen=True)
class Estimate:
    """What a ticket would cost and save, from measured step times."""

    dense_steps: int
    search_steps: int
    ticket_steps: int
    dense_step: float
    """Seconds."""
    search_step: float
    ticket_step: float
    flops_ratio: float
    """Of a ticket's step, to a dense one's."""
    dense_flops: float
    """Of a dense step."""
    beside: Sequence[Beside] = ()
    """What comes on top of search and training."""

    @property
    def on_top(self) -> float:
        """Seconds of what is done beside plain steps."""
        return sum(each.seconds for each in self.beside)

    @property
    def dense_time(self) -> float:
        """Seconds of the whole dense run."""
        return self.dense_steps * self.dense_step

    @property
    def ticket_time(self) -> float:
        """Seconds of search, training and what is done beside them."""
        return self.search_steps * self.search_step + self.ticket_steps * self.ticket_step + self.on_top

    @property
    def saved(self) -> float:
        """Share of the dense run's time."""
        return 1 - self.ticket_time / self.dense_time

    @property
    def pays_after(self) -> int | None:
        """Training steps after which the smaller network has earned what it cost; None when it never does."""
        gain = self.dense_step - self.ticket_step
        if self.ticket_step >= FASTER * self.dense_step:
            return None
        return math.ceil((self.search_steps * self.search_step + self.on_top) / gain)

    @property
    def rival_steps(self) -> int:
        """Steps that the dense model can take in the ticket's time."""
        return max(1, int(self.ticket_time / self.dense_step))

    @property
    def flops(self) -> float:
        """FLOPs of all that, of the dense run's."""
        more = sum(each.flops for each in self.beside) / self.dense_flops
        return (self.search_steps + self.ticket_steps * self.flops_ratio + more) / self.dense_steps


def advise(settings: Mapping[str, Any], *, seconds: float) -> Estimate:
    """Time the dense, the search and the ticket's step in turns, and print what a ticket would save here.

    Nothing is written and nothing is trained in earnest. The ticket is drawn at random: its size is
    what its time depends on.

    Args:
        settings: Of `Finetune`.
        seconds: How long to time the steps, warming up included.

    Raises:
        Refused: The model or the data cannot be used.
    """
    bench = Bench.set_up(Finetune(**with_recipe(settings)))
    lengths = plan(bench)
    model = bench.theta_0()
    ticket = stand_in(bench.config, of(model))
    small = apply(model, ticket, check=False)
    say(f"timing dense, search and ticket steps in turns for {seconds:g} s ...")
    with contenders(bench, {"ticket": ticket}, match=bench.config.match) as steps:
        times = in_turns(steps, some_batches(bench), seconds=seconds)
    inference = inference_seconds(bench, {"dense": model.eval(), "ticket": small.eval()})
    costs = count(model), count(small)
    estimate = estimated(bench, lengths, times, *costs, beside(bench, lengths, times, model, small))
    ratio = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    display.table(table(bench, estimate, inference, ratio))
    for sentence in sentences(bench, estimate, times):
        say(sentence)
    return estimate


def estimated(
    bench: Bench, lengths: Plan, times: Mapping[str, list[float]], dense: Cost, small: Cost, more: Sequence[Beside]
) -> Estimate:
    """From step times by pass, the shapes of the first steps, and what is done beside them."""
    stream = bench.stream(SHARED_ORDER)
    shapes = [stream.shapes(step, padded=bench.engine == "eager") for step in range(SAMPLED_STEPS)]
    flops = [sum(cost.step(shape) for shape in shapes) for cost in (dense, small)]
    search = lengths.search if METHODS[bench.config.method].searches else 0
    train = lengths.train - (search if bench.config.weights == "keep" else 0)  # with keep the search is part of it
    seconds = {name: statistics.median(passes) for name, passes in times.items()}
    each = (seconds["dense"], seconds["search"], seconds["ticket"])
    return Estimate(lengths.dense, search, train, *each, flops[1] / flops[0], flops[0] / SAMPLED_STEPS, more)


def table(bench: Bench, found: Estimate, inference: Mapping[str, float], parameters: float) -> Sheet:
    """Dense, the dense model stopped at the ticket's time, and the ticket, a column each."""
    epoch = bench.stream(SHARED_ORDER).steps_per_epoch
    same = found.rival_steps * found.dense_step
    steps = [found.dense_steps, found.rival_steps, found.search_steps + found.ticket_steps]
    rows = [
        ["steps", *(f"{each:,}" for each in steps)],
        ["of them search", "-", "-", f"{found.search_steps:,}"],
        ["epochs", *(f"{each / epoch:.2f}" for each in steps)],
        ["ms a step", *(f"{1e3 * each:.1f}" for each in (found.dense_step, found.dense_step, found.ticket_step))],
        [
            "training time",
            *(
                f"{duration(each)} ({each / found.dense_time:.2f})"
                for each in (found.dense_time, same, found.ticket_time)
            ),
        ],
        ["training FLOPs", *(f"{each:.2f}" for each in (1.0, found.rival_steps / found.dense_steps, found.flops))],
        ["parameters", "1", "1", f"{parameters:.2f}"],
        ["inference, ms a row", *(f"{1e3 * inference[name]:.2f}" for name in ("dense", "dense", "ticket"))],
    ]
    device = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    title = f"{bench.task.name} with {bench.config.model} on {device}, {bench.engine} engine"
    return Sheet(title, ("", "dense", "dense, same time", "ticket"), rows)


def sentences(bench: Bench, found: Estimate, times: Mapping[str, list[float]]) -> list[str]:
    """What follows, in words; the last one is the advice."""
    ratio = found.ticket_step / found.dense_step
    ratios = [a / b for a, b in zip(times["ticket"], times["dense"], strict=True)]
    fewer = (found.dense_steps - found.ticket_steps) * found.dense_step / found.dense_time
    smaller = found.ticket_steps * (found.dense_step - found.ticket_step) / found.dense_time
    searching = found.search_steps * found.search_step / found.dense_time
    rival = found.rival_steps / bench.stream(SHARED_ORDER).steps_per_epoch
    whole = f"save {found.saved:.0%} of" if found.saved >= 0 else f"take {-found.saved:.0%} more than"
    said = [
        f"A ticket's step takes {ratio:.2f} of a dense one here ({min(ratios):.2f} to {max(ratios):.2f} over "
        f"{len(ratios)} passes), at {found.flops_ratio:.2f} of its FLOPs; a search step takes "
        f"{found.search_step / found.dense_step:.2f}.",
        f"The ticket would {whole} the dense training time: {fewer:+.0%} saved by fewer epochs, "
        f"{smaller:+.0%} by the smaller network, {-searching:+.0%} for the search"
        + "".join(f", {-each.seconds / found.dense_time:+.1%} for {each.name}" for each in found.beside)
        + ".",
    ]
    if found.pays_after is not None:
        its = "its search" + (" and what comes with it" if found.beside else "")
        said.append(f"The smaller network has earned {its} after {found.pays_after:,} training steps.")
    if found.rival_steps < found.dense_steps:
        stop = f"stopping after {rival:.2f} epochs ({found.rival_steps:,} steps)"
        said.append(f"The dense model can have the same saving by {stop}.")
    if what := untimed(bench.config.method, bench.config.cuts):
        said.append(f"The run has {what}, whose steps were not timed: it takes longer than this.")
    said += [f"note: {note}" for note in advice(bench)]
    return [*said, f"Advice: {_advice(found, rival)}"]


def _advice(found: Estimate, rival: float) -> str:
    if found.rival_steps >= found.dense_steps:
        return (
            "train dense (--method dense): search and ticket take as long as the whole dense run here, or longer. "
            "A ticket is for a smaller model at the end, not for the time."
        )
    instead = f"train dense for fewer epochs (--method dense --dense-epochs {rival:.2f})"
    if found.pays_after is None:
        return (
            f"{instead}: a ticket's step is no faster here, so all it saves comes from fewer epochs. "
            "--engine fast and a wider --align can change that."
        )
    if found.pays_after > found.ticket_steps:
        return (
            f"{instead}: the smaller network earns its search only after {found.pays_after:,} steps, and the ticket "
            f"trains {found.ticket_steps:,}. A ticket is for a smaller model at the end, not for the time."
        )
    return (
        "a ticket can pay: it also serves faster. Which one scores better at this cost, timing cannot tell: "
        "earlybert compare --methods [dense,dense_same_time,ticket] does."
    )


def duration(seconds: float) -> str:
    """Seconds in the unit a person would use."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
