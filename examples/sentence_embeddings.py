"""Slim a SentenceTransformer and teach it its old embeddings, with the library's own trainer.

    pip install sentence-transformers
    python examples/sentence_embeddings.py --steps 60 --output runs/embeddings

The search needs a loss, which an embedding model has not, so a classifier on the same encoder lends it one.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MSELoss
from transformers import AutoModelForSequenceClassification

import earlybert as eb
from earlybert.tasks import demo
from earlybert.tasks.task import Examples


def slim(body: SentenceTransformer, where: str, texts: list[str], labels: list[int], steps: int) -> None:
    """Cut the transformer inside `body`, in place, by a ticket that was searched on labelled texts.

    Args:
        body: The model whose first module is the transformer, as it nearly always is.
        where: The folder or name that the transformer came from.
        texts: To search on.
        labels: A class number for each.
        steps: Of the search; 100 are needed for a ticket that means something.
    """
    classifier = AutoModelForSequenceClassification.from_pretrained(where, num_labels=max(labels) + 1)
    batches = []
    for begin in range(0, len(texts), 16):
        rows = slice(begin, begin + 16)
        batch = body.tokenizer(texts[rows], truncation=True, max_length=32, padding=True, return_tensors="pt")
        batches.append({**batch, "labels": torch.tensor(labels[rows])})
    scores = eb.search(classifier, batches, steps=steps, lr=5e-5)
    encoder: Any = body[0].auto_model
    put(body, eb.apply(encoder, eb.draw(scores, heads=4, neurons=0.4)))


def put(body: SentenceTransformer, encoder: torch.nn.Module) -> None:
    """Replace the transformer inside `body`; the name it goes by differs between versions."""
    transformer = body[0]
    name = next(name for name, child in transformer.named_children() if child is transformer.auto_model)
    setattr(transformer, name, encoder)


def sample(examples: Examples, count: int) -> tuple[list[str], list[int]]:
    """Texts and class numbers of some rows; the corpus lies sorted by class."""
    rows = random.Random(0).sample(range(len(examples)), count)
    return [examples.texts[row] for row in rows], [int(examples.labels[row]) for row in rows]


def size(model: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Slim, distil, save, load."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60, help="steps to search, and steps to train")
    parser.add_argument("--output", default="runs/embeddings")
    args = parser.parse_args()

    torch.manual_seed(0)
    task, where = demo.load(), str(demo.model_path())
    (texts, labels), (unseen, _) = sample(task.train, 720), sample(task.validation, 100)
    dense, small = (SentenceTransformer(where, device="cpu") for _ in range(2))
    for model in (dense, small):
        model.max_seq_length = 32
    wanted = dense.encode(unseen, convert_to_tensor=True)

    def likeness() -> float:
        return torch.cosine_similarity(small.encode(unseen, convert_to_tensor=True), wanted).mean().item()

    slim(small, where, texts, labels, args.steps)
    cut = likeness()
    SentenceTransformerTrainer(
        model=small,
        args=SentenceTransformerTrainingArguments(
            output_dir=args.output, max_steps=args.steps, per_device_train_batch_size=16, learning_rate=1e-4,
            save_strategy="no", report_to=[], use_cpu=True,
        ),
        train_dataset=Dataset.from_dict({"sentence": texts, "label": dense.encode(texts).tolist()}),
        loss=MSELoss(small),
    ).train()  # fmt: skip
    print(f"{size(dense):,} -> {size(small):,} parameters; cosine to the dense embeddings {cut:.3f}, {likeness():.3f}")

    small.save(args.output)
    loaded = SentenceTransformer(where, device="cpu")  # pooling and tokenizer as they were; only the transformer is cut
    loaded.max_seq_length = 32
    put(loaded, eb.load(args.output))
    difference = (loaded.encode(unseen, convert_to_tensor=True) - small.encode(unseen, convert_to_tensor=True)).abs()
    print(f"loaded again: embeddings differ by {difference.max().item():.0e}")


if __name__ == "__main__":
    main()
