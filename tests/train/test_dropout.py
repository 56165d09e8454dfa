"""Dropout from 15 random bits a value: the distribution, the gradient, and where it is not used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from earlybert.train.dropout import Dropouts, dropout
from earlybert.train.fast import RaggedStep
from earlybert.train.optimizer import adamw
from tests.conftest import tiny_batch, tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.003])
def test_as_many_zeros_as_asked_for_and_the_mean_is_kept(dtype: torch.dtype, p: float) -> None:
    torch.manual_seed(0)
    x = torch.full((7, 100_001), 3.0, dtype=dtype, requires_grad=True)
    out = dropout(x, p)
    zeros = (out == 0).double()
    error = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(float(zeros.mean()) - p) < 4 * error + 2**-16
    assert out.dtype == dtype
    kept = out[out != 0].unique()
    assert kept.tolist() == pytest.approx([3.0 / (1 - p)], rel=4e-3 if dtype == torch.bfloat16 else 3e-5)
    # independent along the row: the four values of one draw as well as values of neighbouring draws
    for lag in (1, 2, 3, 4, 5):
        both = float((zeros[:, lag:] * zeros[:, :-lag]).mean())
        assert abs(both - p * p) < 5 * (p * p / x.numel()) ** 0.5 + 2 * p * error
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad == 0, out == 0)
    assert grad[grad != 0].unique().tolist() == pytest.approx(
        [1 / (1 - p)], rel=4e-3 if dtype == torch.bfloat16 else 3e-5
    )


def test_the_generator_decides_and_other_cases_are_the_stock_function() -> None:
    x = torch.randn(50, 30)
    torch.manual_seed(5)
    first, second = dropout(x, 0.3), dropout(x, 0.3)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.3), first)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(dropout(x.t().contiguous().t(), 0.3), first)  # whatever the strides
    for other, p in ((x.double(), 0.3), (x, 0.0), (x, 1.0), (x, 1e-6)):
        torch.manual_seed(6)
        mine = dropout(other, p)
        torch.manual_seed(6)
        assert torch.equal(mine, nn.functional.dropout(other, p))


def test_modules_draw_so_in_training_alone_and_are_put_back() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.0))
    x = torch.randn(40, 40)
    torch.manual_seed(0)
    wanted = dropout(x, 0.5)
    torch.manual_seed(0)
    with Dropouts(model).quick():
        assert torch.equal(model(x), wanted)
        assert torch.equal(model.eval()(x), x)
    assert all("forward" not in vars(module) for module in model)


def test_a_replaced_forward_stays() -> None:
    model = tiny_model("bert")
    embedding, drop = model.get_input_embeddings(), model.bert.embeddings.dropout
    embedding.forward, drop.forward = embedding.forward, drop.forward  # as hooks of other libraries do
    theirs = embedding.forward, drop.forward
    step = RaggedStep(model.train(), adamw(model, lr=1e-3))
    step(step.prepare([tiny_batch()]))
    assert (embedding.forward, drop.forward) == theirs


def test_a_step_repeats_itself_from_the_same_state_of_the_generator() -> None:
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        model = tiny_model("bert").train()
        step = RaggedStep(model, adamw(model, lr=1e-3), precision="bf16")
        torch.manual_seed(1)
        losses.append([float(step(step.prepare([tiny_batch()]))) for _ in range(4)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4
