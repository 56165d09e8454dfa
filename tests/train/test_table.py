"""The gradient of a word embedding that stays where it is: the same as autograd's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertForMaskedLM

from earlybert.train.fast import RaggedStep
from earlybert.train.optimizer import adamw
from earlybert.train.table import Table
from tests.conftest import tiny_batch, tiny_config, tiny_model


@pytest.mark.parametrize("padding", [None, 3])
def test_gradients_are_those_of_autograd_over_steps_and_micro_batches(padding: int | None) -> None:
    torch.manual_seed(0)
    mine, stock = nn.Embedding(40, 8, padding), nn.Embedding(40, 8, padding)
    stock.load_state_dict(mine.state_dict())
    table = Table(mine)
    for step in range(3):
        table.clear()
        stock.weight.grad = None
        touched: set[int] = set()
        for _ in range(2):
            ids, weights = torch.randint(0, 40, (1, 12)), torch.randn(1, 12, 8)
            ids[0, :2] = 3  # which may be the padding
            touched |= set(ids.flatten().tolist())
            with table.in_place():
                (mine(ids) * weights).sum().backward()
            (stock(ids) * weights).sum().backward()
        assert "forward" not in vars(mine)
        torch.testing.assert_close(mine.weight.grad, stock.weight.grad, rtol=0, atol=1e-6)
        assert set(table.touched().tolist()) == touched - {padding}, step


def test_a_step_clips_as_the_stock_function_does() -> None:
    model = tiny_model("bert")
    step = RaggedStep(model, adamw(model, lr=1e-3), max_grad_norm=0.05)
    (packed,) = step.prepare([tiny_batch()])
    step.clear()
    step.loss(packed).backward()
    copies: list[Any] = []
    for parameter in model.parameters():
        copies.append(nn.Parameter(parameter.detach()))
        copies[-1].grad = None if parameter.grad is None else parameter.grad.clone()
    norm = nn.utils.clip_grad_norm_(copies, 0.05)
    assert norm > 0.05
    step.clip(0.05)
    for copy, parameter in zip(copies, model.parameters(), strict=True):
        assert (copy.grad is None) == (parameter.grad is None)
        if copy.grad is not None:
            torch.testing.assert_close(parameter.grad, copy.grad, rtol=1e-5, atol=1e-8)


def test_only_where_the_embedding_has_no_other_use_and_is_trained() -> None:
    assert Table.of(tiny_model("bert")) is not None
    assert Table.of(BertForMaskedLM(tiny_config("bert"))) is None  # its decoder is the same matrix
    frozen = tiny_model("bert")
    frozen.get_input_embeddings().weight.requires_grad_(False)
    assert Table.of(frozen) is None
    assert Table.of(nn.Linear(2, 2)) is None
