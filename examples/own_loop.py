"""Search, draw and cut in your own training loop, on the packaged model.

    python examples/own_loop.py --steps 60

Three verbs replace nothing of yours: the loop below is an ordinary PyTorch loop on a smaller model.
"""

from __future__ import annotations

import argparse
import random
from itertools import islice

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import earlybert as eb
from earlybert.tasks import demo


def batches(tokenizer, examples, rows: int, seed: int):
    """Dicts with labels, padded to the longest row: anything your model accepts will do."""
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    for begin in range(0, len(order), rows):
        part = order[begin : begin + rows]
        batch = tokenizer(
            [examples.texts[row] for row in part], truncation=True, max_length=32, padding=True, return_tensors="pt"
        )
        batch["labels"] = torch.tensor([examples.labels[row] for row in part])
        yield dict(batch)


def main() -> None:
    """Search on the first batches, then train the ticket."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60, help="steps to search, and steps to train")
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    task = demo.load()
    tokenizer = AutoTokenizer.from_pretrained(demo.model_path())
    model = AutoModelForSequenceClassification.from_pretrained(demo.model_path(), num_labels=len(task.labels))

    scores = eb.search(model, batches(tokenizer, task.train, 16, seed=0), steps=steps, lr=5e-5)
    ticket = eb.draw(scores, heads=4, neurons=0.4)  # what to remove: 4 of 12 heads a layer, 40 % of all neurons
    small = eb.apply(model, ticket).train()  # a copy of the same class, cut from the weights before the search
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    print(f"{before:,} -> {after:,} parameters; neurons by layer {[len(kept) for kept in ticket.neurons]}")

    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-4)
    losses = []
    for batch in islice(batches(tokenizer, task.train, 16, seed=1), steps):
        loss = small(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss after {len(losses)} steps: {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
