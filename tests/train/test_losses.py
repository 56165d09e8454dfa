"""Losses of our own, held against those of `transformers` where both hold."""

from __future__ import annotations

import torch
from transformers import BertForQuestionAnswering

from earlybert.train.losses import span_loss
from tests.conftest import tiny_batch, tiny_config


def test_without_padding_the_loss_of_a_span_is_that_of_the_model() -> None:
    torch.manual_seed(0)
    model = BertForQuestionAnswering(tiny_config("bert")).eval()
    batch = tiny_batch(labels=False)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    rows = len(batch["input_ids"])
    positions = {"start_positions": torch.arange(rows) % 3, "end_positions": torch.arange(rows) % 5 + 2}
    output = model(**batch, **positions)
    found = span_loss(output, positions, batch["attention_mask"].bool())
    torch.testing.assert_close(found, output.loss, rtol=1e-6, atol=0)
