"""A cut model computes what the masked model computes, in every family, and carries its optimizer over."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import earlybert
from earlybert import CutMismatch, Gates, Refused, Scores, Ticket, apply, draw, export, rebind
from earlybert.anatomy import of
from earlybert.ticket.surgery import fold, mask
from tests.conftest import HEADS, LAYERS, NEURONS, tiny_batch, tiny_model, uneven


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("head", [True, False])
def test_cut_equals_masked(family: str, head: bool, attention: str) -> None:
    if attention == "sdpa" and not tiny_model(family)._supports_sdpa:
        pytest.skip("ELECTRA has none before transformers 5")
    model = tiny_model(family, head=head, attn_implementation=attention).eval()
    ticket = uneven(family)
    batch = tiny_batch(labels=False)
    small = apply(model, ticket)
    masked = copy.deepcopy(model)
    mask(masked, ticket)
    for name, expected in masked(**batch).items():
        torch.testing.assert_close(small(**batch)[name], expected, rtol=1e-5, atol=1e-5)
    assert type(small) is type(model)
    assert [(layer.heads, layer.neurons) for layer in of(small).layers] == [(1, 7), (3, 40), (4, 64)]
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert of(model).whole  # the original is whole


def test_gradients_of_cut_and_masked_agree(family: str) -> None:
    model, ticket = tiny_model(family).eval(), uneven(family)
    small, masked = apply(model, ticket), copy.deepcopy(model)
    mask(masked, ticket)
    batch = tiny_batch()
    small(**batch).loss.backward()
    masked(**batch).loss.backward()
    grads = dict(masked.named_parameters())
    for name, parameter in small.named_parameters():
        if parameter.shape == grads[name].shape and parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, grads[name].grad, rtol=1e-4, atol=1e-6)


def test_inplace_and_copy_agree_and_modes_stay() -> None:
    model, ticket = tiny_model().train(), uneven("bert")
    small = apply(model, ticket)
    inplace = copy.deepcopy(model)
    assert apply(inplace, ticket, inplace=True) is inplace
    assert all(
        torch.equal(a, b) for a, b in zip(small.state_dict().values(), inplace.state_dict().values(), strict=True)
    )
    assert all(module.training for module in small.modules())


@pytest.mark.parametrize("who", ["nobody", "older", "newer"])
def test_whoever_set_the_precision_of_products_finds_it_so(who: str) -> None:
    part: Any = torch.backends.mkldnn.matmul
    if who == "newer" and not hasattr(part, "fp32_precision"):
        pytest.skip("torch has one interface")
    before = getattr(part, "fp32_precision", None)
    try:
        if who == "older":
            torch.set_float32_matmul_precision("high")
        elif who == "newer":
            part.fp32_precision = "bf16"
        apply(tiny_model(), uneven("bert"))
        if who == "newer":
            assert part.fp32_precision == "bf16"
        else:
            assert torch.get_float32_matmul_precision() == ("high" if who == "older" else "highest")
    finally:
        if before is not None:
            part.fp32_precision = before
        if who == "older":
            torch.set_float32_matmul_precision("highest")


def test_a_naive_cut_is_caught_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family whose cut is wrong must raise: here the rows kept are not those the ticket names."""
    from earlybert.ticket import surgery

    model, ticket = tiny_model(), uneven("bert")
    before = copy.deepcopy(model.state_dict())
    real = surgery.slices
    monkeypatch.setattr(
        surgery, "slices", lambda *args: {n: (d, i.flip(0) if "value" in n else i) for n, (d, i) in real(*args).items()}
    )
    with pytest.raises(CutMismatch, match="differs from the masked"):
        apply(model, ticket, inplace=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    searched = Scores.of_gates(Gates(model), weights=model.state_dict())
    with pytest.raises(CutMismatch, match="differs from the masked"):
        apply(model, ticket, weights=searched)
    apply(model, ticket, check=False)  # can be turned off by name


def test_a_cut_that_gives_no_number_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from earlybert.ticket import surgery

    model, ticket, real = tiny_model(), uneven("bert"), surgery.cut

    def broken(small: torch.nn.Module, kept: Ticket) -> None:
        real(small, kept)
        next(small.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(surgery, "cut", broken)
    with pytest.raises(CutMismatch, match="nan"):
        apply(model, ticket)


def test_frozen_weights_stay_frozen() -> None:
    model = tiny_model()
    model.base_model.requires_grad_(False)
    small = apply(model, uneven("bert"))
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]


def test_searched_weights_are_folded_in(family: str) -> None:
    model = tiny_model(family).eval()
    gates = Gates(model)
    torch.manual_seed(2)
    for parameter in gates.parameters():
        parameter.data.uniform_(0.5, 1.5)
    batch = tiny_batch(labels=False)
    with gates:
        gated = model(**batch).logits
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    scores = Scores.of_gates(gates, weights=weights)
    for parameter in model.parameters():  # the model has moved on since
        parameter.data.normal_()
    everything = Ticket.from_dict(draw(scores, heads=0, neurons=0).to_dict())
    torch.testing.assert_close(apply(model, everything, weights=scores)(**batch).logits, gated, rtol=1e-5, atol=1e-5)
    ticket = uneven(family)
    small = apply(model, ticket, weights=scores)
    reference = copy.deepcopy(model)
    reference.load_state_dict(weights)
    fold(reference, scores)
    mask(reference, ticket)
    torch.testing.assert_close(small(**batch).logits, reference(**batch).logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(Refused, match="keep_weights"):
        apply(model, ticket, weights=Scores.of_gates(gates))


def test_rebound_optimizer_does_what_the_masked_one_does() -> None:
    """Slicing moments and slicing afterwards give the same next step, as each element has its own moments."""
    # float64: a key bias has no gradient but rounding, which Adam would blow up
    model, ticket = tiny_model().double().eval(), uneven("bert")
    mask(model, ticket)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    gates = Gates(model)
    optimizer.add_param_group({"params": gates.parameters(), "name": "coefficients"})
    batch = tiny_batch()
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        mask(model, ticket)
    full, full_optimizer = copy.deepcopy((model, optimizer))
    small = apply(model, ticket)
    carried = rebind(optimizer, model, small)
    held = {id(p) for group in carried.param_groups for p in group["params"]}
    assert held == {id(p) for p in small.parameters()}
    assert set(map(id, carried.state)) <= held
    for now, now_optimizer in ((small, carried), (full, full_optimizer)):
        now_optimizer.zero_grad()
        now(**batch).loss.backward()
        now_optimizer.step()
    mask(full, ticket)
    expected = apply(full, ticket).state_dict()
    for name, value in small.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)
    with pytest.raises(Refused, match="carries no ticket"):
        rebind(carried, full, full)


def test_an_optimizer_that_cannot_be_carried_over_is_refused() -> None:
    model = tiny_model()
    small = apply(model, uneven("bert"))
    with pytest.raises(Refused, match="holds no parameter of the model from before the cut"):
        rebind(torch.optim.AdamW(tiny_model().parameters()), model, small)
    factored = torch.optim.Adafactor(model.parameters())
    model(**tiny_batch()).loss.backward()
    factored.step()
    with pytest.raises(Refused, match="Adafactor keeps state"):
        rebind(factored, model, small)
    assert all(p is q for p, q in zip(factored.param_groups[0]["params"], model.parameters(), strict=True))
    optimizer = torch.optim.AdamW(model.parameters())
    apply(model, uneven("bert"), inplace=True)
    with pytest.raises(Refused, match="without inplace"):
        rebind(optimizer, model, model)


def test_hooks_stay_and_a_shared_configuration_does_not_know_of_the_cut() -> None:
    config = tiny_model().config
    student, teacher = type(tiny_model())(config), type(tiny_model())(config)
    seen: list[int] = []
    linear = student.get_submodule(of(student).layers[0].down)
    linear.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[-1]))
    apply(student, uneven("bert"), inplace=True)
    seen.clear()  # of the check
    student(**tiny_batch())
    assert seen == [of(student).layers[0].neurons]
    assert student.config is not config
    assert student.base_model.config is student.config
    assert teacher.config is config
    assert of(teacher).whole
    assert earlybert.ticket.ticket_of(teacher) is None


def test_tickets_for_other_models_are_refused() -> None:
    ticket = uneven("bert")
    with pytest.raises(Refused, match="model type is bert in the ticket and roberta"):
        apply(tiny_model("roberta"), ticket)
    with pytest.raises(Refused, match="number of layers is 3 in the ticket and 2"):
        apply(tiny_model("bert", num_hidden_layers=2), ticket)
    with pytest.raises(Refused, match="neurons per layer is 64 in the ticket and 32"):
        apply(tiny_model("bert", intermediate_size=32), ticket)
    other = Ticket(tuple((3 - h,) for h, *_ in ticket.heads), ticket.neurons, "bert", HEADS, NEURONS)
    with pytest.raises(Refused, match=r"already been cut: head \d of layer \d, which this ticket keeps, is gone"):
        apply(apply(tiny_model("bert"), ticket), other)


@pytest.mark.parametrize(("family", "positions"), [("bert", 12), ("bert", 3), ("roberta", 15), ("roberta", 5)])
def test_models_of_few_positions_are_cut_and_checked(family: str, positions: int, tmp_path: Path) -> None:
    model = tiny_model(family, max_position_embeddings=positions)
    small = apply(model, uneven(family))
    assert earlybert.ticket_of(small) == uneven(family)
    export.expanded(small, tmp_path / "whole")
    if positions == 12:
        export.program(small, tmp_path / "torch")


def test_a_negative_padding_id_is_no_token() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS}
    config = LlamaConfig(**sizes, intermediate_size=NEURONS, vocab_size=50, pad_token_id=-1)
    small = apply(LlamaForCausalLM(config), uneven("llama"))
    assert small.config.pad_token_id == -1


def test_scores_are_no_ticket() -> None:
    model = tiny_model()
    scores: Any = earlybert.search(model, [tiny_batch()], steps=1, precision="no")
    with pytest.raises(Refused, match="not a Scores; draw a ticket first"):
        apply(model, scores)


def test_a_model_without_values_is_cut_for_its_sizes_alone() -> None:
    model, ticket = tiny_model().to("meta"), uneven("bert")
    for inplace in (False, True):
        with pytest.raises(Refused, match=r"on the meta device, .+ with check=False\.$"):
            apply(model, ticket, inplace=inplace)
    assert of(apply(model, ticket, check=False)) == of(apply(tiny_model(), ticket))


def test_a_model_that_does_not_say_what_is_left_is_refused() -> None:
    small = apply(tiny_model(), uneven("bert"))
    for entry in (None, {"ticket": "?"}, {"ticket": {**uneven("bert").to_dict(), "neurons": [[0]] * LAYERS}}):
        small.config.earlybert = entry
        with pytest.raises(Refused, match="already been cut, and its configuration holds no ticket of these sizes"):
            apply(small, uneven("bert"))
        with pytest.raises(Refused, match="already been cut"):
            Gates(small)


def test_a_model_cut_alike_in_all_layers_is_known_as_cut() -> None:
    even = Ticket(((0, 2, 3),) * LAYERS, (tuple(range(32)),) * LAYERS, "bert", HEADS, NEURONS)
    small = apply(tiny_model(), even)
    assert Gates(small).heads[0].tolist() == [1, 0, 1, 1]
    with pytest.raises(Refused, match="already been cut: head 1 of layer 0"):
        apply(small, Ticket(((1,),) * LAYERS, even.neurons, "bert", HEADS, NEURONS))
