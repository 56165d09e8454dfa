"""Eq. 2-4 and their gradients against a plain float64 version; gates leave no trace."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from earlybert import Gates, Refused, apply, draw
from earlybert.ticket import Scores
from tests.conftest import HEADS, LAYERS, NEURONS, tiny_batch, tiny_model


def plain_bert_loss(state: dict[str, Tensor], c_h: Tensor, c_f: Tensor, batch: dict[str, Tensor], l1: float) -> Tensor:
    """L of Eq. 4 written out for a BERT classifier, float64, straight from Eq. 1-3."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-12)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    ids, keep = batch["input_ids"], batch["attention_mask"]
    rows, length = ids.shape
    embedded = (
        state["bert.embeddings.word_embeddings.weight"][ids]
        + state["bert.embeddings.position_embeddings.weight"][:length]
        + state["bert.embeddings.token_type_embeddings.weight"][0]
    )
    x = norm(embedded, "bert.embeddings.LayerNorm")
    for layer in range(LAYERS):
        name = f"bert.encoder.layer.{layer}"
        q, k, v = (linear(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        size = q.shape[-1] // HEADS
        heads = []
        for i in range(HEADS):
            part = slice(i * size, (i + 1) * size)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
            scores = scores.masked_fill(keep[:, None, :] == 0, -torch.inf)
            heads.append(c_h[layer, i] * (scores.softmax(-1) @ v[..., part]))  # Eq. 2
        x = norm(
            linear(torch.cat(heads, -1), f"{name}.attention.output.dense") + x, f"{name}.attention.output.LayerNorm"
        )
        inner = linear(x, f"{name}.intermediate.dense")
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(linear(c_f[layer] * inner, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")  # Eq. 3
    logits = linear(torch.tanh(linear(x[:, 0], "bert.pooler.dense")), "classifier")
    loss = -(logits - logits.logsumexp(-1, keepdim=True))[torch.arange(rows), batch["labels"]].mean()
    return loss + l1 * (c_h.abs().sum() + c_f.abs().sum())  # Eq. 4


@pytest.mark.parametrize("on", ["weight", "input"])
def test_equations_and_gradients_against_float64(on: str) -> None:
    model = tiny_model().double().eval()
    batch = tiny_batch()
    gates = Gates(model, on=on)  # type: ignore[arg-type]
    torch.manual_seed(3)
    for parameter in gates.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    gates.heads.data[0, 0] = -0.7  # magnitude and sign both matter to the L1 gradient
    l1 = 0.01
    with gates:
        loss = model(**batch).loss
        loss.backward()
    gates.add_l1((l1, l1))

    state = {
        name: value.detach().clone().requires_grad_()
        for name, value in model.state_dict().items()
        if value.is_floating_point()
    }
    c_h, c_f = (p.detach().double().requires_grad_() for p in gates.parameters())
    expected = plain_bert_loss(state, c_h, c_f, batch, l1)
    expected.backward()
    total = loss.item() + l1 * sum(p.abs().sum().item() for p in gates.parameters())
    assert total == pytest.approx(expected.item(), rel=1e-7)
    torch.testing.assert_close(gates.heads.grad.double(), c_h.grad, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(gates.neurons.grad.double(), c_f.grad, rtol=1e-5, atol=1e-8)
    for name, parameter in model.named_parameters():
        if state[name].grad is not None:
            torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-7, atol=1e-10)


def test_input_and_weight_gates_agree_in_every_family(family: str) -> None:
    model = tiny_model(family).eval()
    batch = tiny_batch()
    results = []
    for on in ("weight", "input"):
        gates = Gates(model, on=on)  # type: ignore[arg-type]
        torch.manual_seed(1)
        for parameter in gates.parameters():
            parameter.data.uniform_(0.5, 1.5)
        with gates:
            model(**batch).loss.backward()
        results.append([p.grad.clone() for p in (*gates.parameters(), *model.parameters())])
        model.zero_grad()
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_attach_and_detach_leave_the_model_bit_identical(family: str) -> None:
    model = tiny_model(family).eval()
    batch = tiny_batch()
    before, keys = (
        copy.deepcopy(model.state_dict()),
        {name: set(vars(module)) for name, module in model.named_modules()},
    )
    reference = model(**batch).logits
    with Gates(model):
        assert torch.equal(model(**batch).logits, reference)  # coefficients of 1 change nothing, to the bit
        assert set(model.state_dict()) == set(before)
    assert torch.equal(model(**batch).logits, reference)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == keys


def test_coefficients_stay_fp32_and_move_in_a_bf16_model() -> None:
    model = tiny_model().bfloat16().train()
    gates = Gates(model)
    optimizer = torch.optim.AdamW(gates.parameters(), lr=2e-5, weight_decay=0.0)
    with gates:
        model(**tiny_batch()).loss.backward()
    gates.add_l1((1e-4, 1e-4))
    optimizer.step()
    assert gates.heads.dtype == gates.neurons.dtype == torch.float32
    assert (gates.neurons != 1).float().mean() > 0.99


def test_l1_strengths_are_separate_and_their_gradient_is_the_sign() -> None:
    gates = Gates(tiny_model())
    gates.heads.data[0, 0], gates.neurons.data[1, 2] = -2.0, 0.0
    gates.add_l1((0.5, 0.25))
    expected_heads, expected_neurons = torch.full((LAYERS, HEADS), 0.5), torch.full((LAYERS, NEURONS), 0.25)
    expected_heads[0, 0], expected_neurons[1, 2] = -0.5, 0.0
    assert torch.equal(gates.heads.grad, expected_heads)
    assert torch.equal(gates.neurons.grad, expected_neurons)


@pytest.mark.parametrize("on", ["weight", "input"])
def test_gates_on_a_cut_model_are_those_of_the_masked_one(on: Any) -> None:
    """What is gone has a coefficient of 0 that never moves; the others are where the whole model has them."""
    model = tiny_model().eval()
    random = torch.Generator().manual_seed(4)
    importance = [tuple(torch.rand(LAYERS, size, generator=random)) for size in (HEADS, NEURONS)]
    ticket = draw(Scores(*importance, "bert"), heads=5, heads_scope="global", neurons=0.3, align=1)
    gates, batch = Gates(apply(model, ticket), on=on), tiny_batch()
    there = [torch.stack([torch.zeros(size).index_fill(0, torch.tensor(kept), 1) for kept in layers])
             for layers, size in ((ticket.heads, HEADS), (ticket.neurons, NEURONS))]  # fmt: skip
    assert all(torch.equal(c.detach(), mask) for c, mask in zip(gates.parameters(), there, strict=True))
    for c in gates.parameters():
        c.data.mul_(torch.linspace(0.5, 1.5, c.numel()).view_as(c))
    reference = Gates(model, on=on)
    for mine, its in zip(reference.parameters(), gates.parameters(), strict=True):
        mine.data.copy_(its)
    with gates, reference:
        losses = [each.model(**batch).loss for each in (gates, reference)]
        found, expected = (
            torch.autograd.grad(loss, each.parameters()) for loss, each in zip(losses, (gates, reference), strict=True)
        )
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for gradient, other, mask in zip(found, expected, there, strict=True):
        assert (gradient[mask == 0] == 0).all()
        torch.testing.assert_close(gradient, other * mask, rtol=1e-4, atol=1e-7)
    gates.add_l1((0.5, 0.5))
    assert all((c.grad[mask == 0] == 0).all() for c, mask in zip(gates.parameters(), there, strict=True))  # pyright: ignore


def test_gates_on_gates_are_refused() -> None:
    model = tiny_model()
    scores = Scores(tuple(torch.rand(LAYERS, HEADS)), tuple(torch.rand(LAYERS, NEURONS)), "bert")
    with Gates(model), pytest.raises(Refused, match="take other gates"):
        Gates(model).attach()
    last = model.bert.encoder.layer[-1].output.dense
    last.forward = last.forward  # somebody else's
    with pytest.raises(Refused, match="take other gates"):
        Gates(model).attach()
    del last.forward
    Gates(model).attach().detach()  # the failure left nothing behind
    with Gates(model), pytest.raises(Refused, match="detach them"):
        apply(model, draw(scores, heads=1, neurons=0.3, align=1))


def test_a_coefficient_that_bf16_does_not_know_scales_bf16_all_the_same() -> None:
    """It lies between 1 and the next number of bf16, 1.0078, and its product with 1.9922 nearer to 2 than to that."""
    from earlybert.ticket.gates import scaled_input, scaled_weight

    linear, c = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16), torch.tensor([1.0035])
    large, one = torch.tensor([1.9921875], dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)
    for scale, weight, x in ((scaled_weight, large, one), (scaled_input, one, large)):
        linear.weight.data = weight[None]
        assert scale(linear, x, c).item() == 2.0


def test_folding_scales_in_fp32_under_autocast() -> None:
    linear = torch.nn.Linear(8, 8)
    c = torch.linspace(0.9, 1.1, 8)
    x = torch.randn(4, 8)
    from earlybert.ticket.gates import scaled_input, scaled_weight

    with torch.autocast("cpu", dtype=torch.bfloat16):
        folded, scaled = scaled_weight(linear, x, c), scaled_input(linear, x, c)
    exact = F.linear(x * c, linear.weight, linear.bias)
    assert folded.dtype == scaled.dtype == torch.bfloat16
    torch.testing.assert_close(folded.float(), exact, rtol=0.02, atol=0.02)
    torch.testing.assert_close(scaled.float(), exact, rtol=0.02, atol=0.02)
