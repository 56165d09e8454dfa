"""Search, cut and go on inside one `Trainer.train()`, on the packaged model.

    python examples/trainer_callback.py --steps 90 --search 30 --output runs/callback

One callback is all that is added to an ordinary Trainer: its first steps are the search.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

import earlybert as eb
from earlybert.tasks import demo


def accuracy(found: EvalPrediction) -> dict[str, float]:
    """Share of the rows that are right."""
    return {"accuracy": float((np.argmax(found.predictions, axis=-1) == found.label_ids).mean())}  # pyright: ignore


def main() -> None:
    """Train, and say what is left of the model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=90, help="steps in all")
    parser.add_argument("--search", type=int, default=30, help="how many of them search")
    parser.add_argument("--weights", choices=("keep", "reset"), default="keep", help="what the ticket starts from")
    parser.add_argument("--output", default="runs/callback")
    args = parser.parse_args()

    torch.manual_seed(0)
    task = demo.load()
    tokenizer = AutoTokenizer.from_pretrained(demo.model_path())
    model = AutoModelForSequenceClassification.from_pretrained(demo.model_path(), num_labels=len(task.labels))
    before = model.num_parameters()
    train, validation = (
        [
            {**tokenizer(text, truncation=True, max_length=32), "labels": label}
            for text, label in zip(part.texts, part.labels, strict=True)
        ]
        for part in (task.train, task.validation)
    )
    early_bird = eb.EarlyBirdCallback(steps=args.search, heads=4, neurons=0.4, weights=args.weights)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=args.output,
            per_device_train_batch_size=16,
            learning_rate=1e-4,
            max_steps=args.steps,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
        ),
        DataCollatorWithPadding(tokenizer),
        train,  # pyright: ignore[reportArgumentType]
        random.Random(0).sample(validation, 200),  # pyright: ignore[reportArgumentType]
        compute_metrics=accuracy,
        callbacks=[early_bird],
    )
    trainer.train()
    score = trainer.evaluate()["eval_accuracy"]
    eb.save(model, args.output, tokenizer=tokenizer)
    after = eb.load(args.output).num_parameters()
    print(f"{before:,} -> {after:,} parameters after {args.search} of {args.steps} steps; accuracy {score:.3f}")


if __name__ == "__main__":
    main()
