"""How early does the mask settle, and where do stop rules end the search?

Searches on real tasks with the coefficient history on, then replays stop rules over it:

    python benchmarks/stopping.py --data-dir DATA --tasks sst2 qnli --steps 400 --out benchmarks/results

Writes `stopping.json`; docs/stopping.md is about these numbers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

import earlybert
from earlybert.config.finetune import Finetune
from earlybert.recipes.finetuning.bench import SHARED_ORDER, Bench
from earlybert.recipes.run import environment
from earlybert.ticket import History, keep_mask
from earlybert.ticket.history import Kind
from earlybert.train import linear

REMOVED: dict[Kind, int | float] = {"heads": 4, "neurons": 0.4}
SPACINGS = (1, 5, 10, 20, 40)
THRESHOLDS = (0.02, 0.03, 0.05, 0.08, 0.10)
CHECKPOINTS = (1, 2, 5, 10, 20, 40, 60, 80, 100, 150, 200, 300, 400)


def search(task: str, seed: int, steps: int, data_dir: str, history: Path) -> tuple[Bench, int]:
    """One search of `steps` steps at lr 5e-5, batch 32, prefix of a 3-epoch run."""
    bench = Bench.set_up(Finetune(task=task, data_dir=data_dir, seed=seed, dense_lr=5e-5))
    stream = bench.stream(SHARED_ORDER)
    torch.manual_seed(seed)
    earlybert.search(
        bench.theta_0(),
        (step[0] for step in stream.starting_at(0)),
        steps=steps,
        lr=5e-5,
        schedule=linear(3 * stream.steps_per_epoch),
        history=history,
        seed=seed,
    )
    return bench, stream.steps_per_epoch


def replay(history: History, cap: int, seed: int) -> dict:
    """What the history shows: ties, distances to the last mask, and where rules would have stopped."""
    last = {kind: history.mask(cap, kind, remove) for kind, remove in REMOVED.items()}

    def overlap(step: int) -> dict[str, float]:
        return {
            kind: float((history.mask(step, kind, remove) != last[kind]).mean()) for kind, remove in REMOVED.items()
        }

    def distances(spacing: int) -> list[tuple[int, float, float]]:
        return [
            (
                step,
                history.distance(step - spacing, step, "heads", REMOVED["heads"]).overall,
                history.distance(step - spacing, step, "neurons", REMOVED["neurons"]).overall,
            )
            for step in range(2 * spacing, cap + 1, spacing)
        ]

    stops = []
    for spacing in SPACINGS:
        seen = distances(spacing)
        for first in (0, 40):
            for threshold in THRESHOLDS:
                usable = [entry for entry in seen if entry[0] - spacing >= first]
                for place in range(2, len(usable)):
                    if all(max(h, n) <= threshold for _, h, n in usable[place - 2 : place + 1]):
                        step = usable[place][0]
                        stops.append(
                            {
                                "every": spacing,
                                "min_steps": first,
                                "threshold": threshold,
                                "stop": step,
                                **overlap(step),
                            }
                        )
                        break
                else:
                    stops.append({"every": spacing, "min_steps": first, "threshold": threshold, "stop": None})
    random = np.random.default_rng(seed)
    chance = {
        kind: float(
            (
                keep_mask(random.random(mask.shape), remove, scope="layer" if kind == "heads" else "global") != mask
            ).mean()
        )
        for (kind, mask), remove in zip(last.items(), REMOVED.values(), strict=True)
    }
    return {
        "distinct_neuron_values": {
            s: len(np.unique(history.coefficients(s, "neurons"))) for s in CHECKPOINTS if s <= cap
        },
        "distance_to_last": {s: overlap(s) for s in CHECKPOINTS if s <= cap},
        "distance_of_chance": chance,
        "distances_every_20": distances(20),
        "stops": stops,
        "neurons_kept_by_layer": last["neurons"].sum(axis=1).tolist(),
    }


def main() -> None:
    """Search every task and seed, write one result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "qnli"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    runs, where = [], {}
    for task in args.tasks:
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "history.bin"
                bench, per_epoch = search(task, seed, args.steps, args.data_dir, file)
                where = environment(bench.device, bench.precision)
                result = replay(History(file), args.steps, seed)
            runs.append({"task": task, "seed": seed, "steps_per_epoch": per_epoch, **result})
            print(task, seed, result["distance_to_last"], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    content = {
        "model": "minilm",
        "lr": 5e-5,
        "rows_per_step": 32,
        "steps": args.steps,
        "environment": where,
        "runs": runs,
    }
    (args.out / "stopping.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
