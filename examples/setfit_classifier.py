"""Slim the body of a SetFit model, then train it on a few examples a class as usual.

pip install setfit
python examples/setfit_classifier.py --steps 60 --output runs/setfit
"""

from __future__ import annotations

import argparse
from typing import cast

import torch
from datasets import Dataset
from sentence_embeddings import put, sample, size, slim
from sentence_transformers import SentenceTransformer
from setfit import SetFitModel, Trainer, TrainingArguments

import earlybert as eb
from earlybert.tasks import demo


def main() -> None:
    """Slim, train, save, load."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60, help="steps to search, and steps to train")
    parser.add_argument("--output", default="runs/setfit")
    args = parser.parse_args()

    torch.manual_seed(0)
    task, where = demo.load(), str(demo.model_path())
    (texts, labels), (unseen, truth) = sample(task.train, 720), sample(task.validation, 100)

    model = SetFitModel.from_pretrained(where, device="cpu")
    body = cast("SentenceTransformer", model.model_body)
    body.max_seq_length = 32
    before = size(body)
    slim(body, where, texts, labels, args.steps)
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.output, max_steps=args.steps, batch_size=16, save_strategy="no", report_to="none"
        ),
        train_dataset=Dataset.from_dict({"text": texts[:80], "label": labels[:80]}),
    ).train()
    predicted = classes(model, unseen)
    accuracy = sum(a == b for a, b in zip(predicted, truth, strict=True)) / len(truth)
    print(f"{before:,} -> {size(body):,} parameters; accuracy {accuracy:.2f}")

    body.save(args.output)
    other = SentenceTransformer(where, device="cpu")
    other.max_seq_length = 32
    put(other, eb.load(args.output))
    again = classes(SetFitModel(model_body=other, model_head=model.model_head), unseen)
    print(f"loaded again: {sum(a == b for a, b in zip(again, predicted, strict=True))} of 100 predictions agree")


def classes(model: SetFitModel, texts: list[str]) -> list[int]:
    """What it says of each text."""
    return [int(each) for each in cast("torch.Tensor", model.predict(texts))]


if __name__ == "__main__":
    main()
