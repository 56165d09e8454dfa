"""Train an early-bird ticket with the stock Hugging Face Trainer, on the packaged model.

    python examples/hf_trainer.py --steps 60 --output runs/trainer

A cut model is an ordinary model: Trainer, callbacks and all work on it unchanged.
"""

from __future__ import annotations

import argparse

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import earlybert as eb
from earlybert.tasks import demo


def main() -> None:
    """Search on the Trainer's own data loader, then let the Trainer train the ticket."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60, help="steps to search, and steps to train")
    parser.add_argument("--output", default="runs/trainer")
    args = parser.parse_args()

    torch.manual_seed(0)
    task = demo.load()
    tokenizer = AutoTokenizer.from_pretrained(demo.model_path())
    model = AutoModelForSequenceClassification.from_pretrained(demo.model_path(), num_labels=len(task.labels))
    rows = [
        {**tokenizer(text, truncation=True, max_length=32), "labels": label}
        for text, label in zip(task.train.texts, task.train.labels, strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=args.output,
        per_device_train_batch_size=16,
        learning_rate=1e-4,
        max_steps=args.steps,
        logging_steps=20,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    collate = DataCollatorWithPadding(tokenizer)
    loader = Trainer(model, arguments, collate, rows).get_train_dataloader()  # pyright: ignore[reportArgumentType]

    scores = eb.search(model, loader, steps=args.steps, lr=5e-5)
    ticket = eb.draw(scores, heads=4, neurons=0.4)
    small = eb.apply(model, ticket)

    trainer = Trainer(small, arguments, collate, rows)  # pyright: ignore[reportArgumentType]
    trainer.train()
    eb.save(small, args.output, tokenizer=tokenizer)
    print(f"{type(eb.load(args.output)).__name__} with {sum(p.numel() for p in small.parameters()):,} parameters saved")


if __name__ == "__main__":
    main()
