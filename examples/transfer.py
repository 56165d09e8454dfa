"""A ticket drawn on one task, tried on another, on the packaged model and corpus.

    python examples/transfer.py --steps 60

The corpus of five topics makes two tasks with different texts and labels: the source tells business, politics and tech
apart, the target entertainment and sports. The target is trained with the ticket of the source, with its own, with a
random one of the same widths, and whole. A second search is what a ticket that transfers would save.
"""

from __future__ import annotations

import argparse
import itertools
import random

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

import earlybert as eb
from earlybert.baselines import random_ticket
from earlybert.tasks import Examples, demo

SOURCE, TARGET = ("business", "politics", "tech"), ("entertainment", "sports")


def only(examples: Examples, names: tuple[str, ...], topics: tuple[str, ...]) -> list[tuple[str, int]]:
    """Texts of these topics, with labels counted anew."""
    wanted = {names.index(topic): label for label, topic in enumerate(topics)}
    rows = zip(examples.texts, examples.labels, strict=True)
    return [(text, wanted[int(label)]) for text, label in rows if label in wanted]


def batches(tokenizer, rows: list[tuple[str, int]], seed: int):
    """Dicts of 16 rows with labels, shuffled anew in every epoch, without end."""
    shuffle = random.Random(seed)
    while True:
        order = shuffle.sample(rows, len(rows))
        for begin in range(0, len(order) - 15, 16):
            texts, labels = zip(*order[begin : begin + 16], strict=True)
            batch = tokenizer(list(texts), truncation=True, max_length=32, padding=True, return_tensors="pt")
            yield dict(batch, labels=torch.tensor(labels))


def fresh(topics: tuple[str, ...]):
    """The packaged encoder with a new head, the same one every time."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(demo.model_path(), num_labels=len(topics))


def score(model, tokenizer, train: list[tuple[str, int]], validation: list[tuple[str, int]], steps: int) -> float:
    """Accuracy after `steps` steps of training."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)
    for batch in itertools.islice(batches(tokenizer, train, seed=1), steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    texts, labels = zip(*validation, strict=True)
    with torch.no_grad():
        inputs = tokenizer(list(texts), truncation=True, max_length=32, padding=True, return_tensors="pt")
        found = model.eval()(**inputs).logits.argmax(-1)
    return (found == torch.tensor(labels)).float().mean().item()


def main() -> None:
    """Two searches, four short trainings, one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60, help="steps of each search and each training")
    parser.add_argument("--rows", type=int, default=200, help="validation rows at most")
    args = parser.parse_args()
    logging.set_verbosity_error()  # a new head is what is wanted

    task, tokenizer = demo.load(), AutoTokenizer.from_pretrained(demo.model_path())
    train = {topics: only(task.train, task.labels, topics) for topics in (SOURCE, TARGET)}
    held_out = only(task.validation, task.labels, TARGET)
    validation = random.Random(0).sample(held_out, min(args.rows, len(held_out)))
    tickets = {}
    for topics in (SOURCE, TARGET):
        scores = eb.search(fresh(topics), batches(tokenizer, train[topics], seed=0), steps=args.steps, lr=5e-5)
        tickets[topics] = eb.draw(scores, heads=4, neurons=0.4)
    rows = {
        "ticket of the source": tickets[SOURCE],
        "its own ticket": tickets[TARGET],
        "random ticket": random_ticket.like(tickets[TARGET], seed=0),
        "whole": None,
    }
    print(f"accuracy on {', '.join(TARGET)}: {len(validation)} rows, {args.steps} steps, one seed")
    for name, ticket in rows.items():
        model = fresh(TARGET) if ticket is None else eb.apply(fresh(TARGET), ticket, inplace=True)
        print(f"{name:<22}{score(model, tokenizer, train[TARGET], validation, args.steps):.3f}")
    for topics, file in ((SOURCE, "source.json"), (TARGET, "target.json")):
        tickets[topics].save(file)
    print("earlybert ticket diff source.json target.json   # says how much of them is shared")


if __name__ == "__main__":
    main()
