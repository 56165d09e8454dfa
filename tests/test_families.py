"""What every family has to pass. Adding one is a table in `anatomy` and a line in `families.py`."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import earlybert
from earlybert import Gates, Refused, apply, rebind
from earlybert.anatomy import SUPPORTED, of
from earlybert.cost import count
from earlybert.export.graph import graph
from earlybert.ticket.surgery import mask
from earlybert.train.fast import RaggedStep
from earlybert.train.step import EagerStep

from .families import (
    DECODE,
    FAMILIES,
    FAST,
    HEADS,
    LENGTH,
    NEURONS,
    NEW,
    build,
    inputs_of,
    kinds,
    masked,
    tensors,
    uneven,
)


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_supported_model_is_tested() -> None:
    assert {name.partition("/")[0] for name in FAMILIES} == set(SUPPORTED)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_cut_equals_masked_with_every_head(name: str, attention: str) -> None:
    tried = []
    for kind, its_class in kinds(name).items():
        if attention == "sdpa" and not its_class._supports_sdpa:
            continue
        model = build(name, kind, attention)
        batch, ticket = inputs_of(model), uneven(model)
        small = apply(model, ticket)
        assert type(small) is type(model)
        assert set(small.state_dict()) == set(model.state_dict())
        with torch.no_grad():
            expected = tensors(masked(model, ticket)(**batch))
            whole = tensors(model(**batch))
            for key, got in tensors(small(**batch)).items():
                torch.testing.assert_close(got, expected[key], rtol=1e-5, atol=1e-5, msg=f"{key} of {kind} differs")
            assert any((whole[key] - expected[key]).abs().max() > 1e-2 for key in expected), kind
        tried.append(kind)
    assert attention == "sdpa" or len(tried) >= 3


def test_search_draw_and_apply(name: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = earlybert.search(model, [inputs_of(model, labels=True)], steps=2, lr=1e-2, precision="no")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all((heads != 1).any() for heads in scores.heads)
    small = apply(model, earlybert.draw(scores, heads=1, neurons=0.25, align=1))
    assert [layer.heads for layer in of(small).layers] == [HEADS - 1] * len(of(model).layers)
    assert sum(layer.neurons for layer in of(small).layers) == 3 * NEURONS // 4 * len(of(model).layers)


def test_a_copy_of_a_cut_model_is_its_own(name: str) -> None:
    """What a cut hangs on modules must follow a copy, and not lead back."""
    model = build(name)
    small, batch = apply(model, uneven(model)), inputs_of(model)
    with torch.no_grad():
        before = small(**batch).logits
        other = copy.deepcopy(small)
        for parameter in small.parameters():
            parameter.zero_()
        assert torch.equal(other(**batch).logits, before)


def test_gradients_of_cut_and_masked_agree(name: str) -> None:
    """Those of tensors that both have whole, such as a position bias that cut layers share."""
    model = build(name)
    ticket, batch = uneven(model), inputs_of(model, labels=True)
    small, reference = apply(model, ticket), masked(model, ticket)
    small(**batch).loss.backward()
    reference(**batch).loss.backward()
    expected = {key: p.grad for key, p in reference.named_parameters() if p.grad is not None}
    compared = 0
    for key, parameter in small.named_parameters():
        if key in expected and parameter.shape == expected[key].shape:
            torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-3, atol=1e-6)
            compared += 1
    assert compared > 5


def test_gradients_of_coefficients_against_finite_differences(name: str) -> None:
    model = build(name).double()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in inputs_of(model).items()}
    labels = model.config.num_labels
    weights = torch.randn(4, labels, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gates = Gates(model)
    # Steps of 2^-9 are exact in the coefficients' fp32; norms that compute in fp32 whatever the model forbid finer ones.
    gates.heads.data[:] = 1 + torch.arange(gates.heads.numel()).reshape(gates.heads.shape) / 64
    step = 2**-9

    def loss() -> Tensor:
        return (model(**batch).logits * weights).sum()

    with gates:
        loss().backward()
        for coefficients, places in ((gates.heads, range(HEADS)), (gates.neurons, range(0, NEURONS, 13))):
            assert coefficients.grad is not None
            scale = float(coefficients.grad.abs().max())
            assert scale > 1e-3
            for layer in range(len(coefficients)):
                for place in places:
                    here, ends = float(coefficients[layer, place].detach()), []
                    for sign in (1, -1):
                        coefficients.data[layer, place] = here + sign * step
                        with torch.no_grad():
                            ends.append(float(loss()))
                    coefficients.data[layer, place] = here
                    numeric = (ends[0] - ends[1]) / (2 * step)
                    assert float(coefficients.grad[layer, place]) == pytest.approx(numeric, rel=2e-3, abs=2e-3 * scale)


def test_rebound_optimizer_does_what_the_masked_one_does(name: str) -> None:
    """Slicing moments and slicing afterwards give the same next step, as each element has its own moments."""
    model = build(name).double()
    ticket, batch = uneven(model), inputs_of(model, labels=True)
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    mask(model, ticket)
    # A large eps: some gradients, such as a key bias's, are nothing but rounding, which Adam would blow up.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        mask(model, ticket)
    full, full_optimizer = copy.deepcopy((model, optimizer))
    small = apply(model, ticket)
    carried = rebind(optimizer, model, small)
    for now, now_optimizer in ((small, carried), (full, full_optimizer)):
        now_optimizer.zero_grad()
        now(**batch).loss.backward()
        now_optimizer.step()
    expected = apply(full, ticket).state_dict()
    for key, value in small.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-7, msg=f"{key} differs")


@pytest.mark.parametrize("cut", [False, True])
def test_cost_against_flop_counter(name: str, cut: bool) -> None:
    model = build(name)
    if cut:
        model = apply(model, uneven(model))
    cost = count(model)
    core = model.get_submodule(of(model).core)  # the encoder of an encoder-decoder
    for rows, length in ((4, LENGTH), (1, 3), (3, 17)):
        batch = inputs_of(model, rows, length)
        batch = {key: batch[key] for key in batch if not key.startswith("decoder")}
        tokens = 10 if "pixel_values" in batch else length  # 3 x 3 patches and the class token
        with FlopCounterMode(display=False) as counter:
            core(**batch)
        # Rotary angles are counted as a product of a vector and a vector; they are no work.
        angles = sum(sum(ops.values()) for key, ops in counter.get_flop_counts().items() if key.endswith("rotary_emb"))
        assert cost.forward([(rows, tokens)]) == counter.get_total_flops() - angles
    assert cost.parameters == model.num_parameters()


@pytest.mark.skipif(not NEW, reason="needs transformers 5")
@pytest.mark.parametrize("cut", [False, True])
def test_fast_step_equals_eager_or_is_refused(name: str, cut: bool) -> None:
    model = build(name)

    def labelled(kind: str) -> dict[str, Tensor]:
        batch = inputs_of(model)
        ids, here = batch["input_ids"], batch["attention_mask"].bool()
        if kind.endswith("MaskedLM"):
            return {**batch, "labels": torch.where(here & (ids % 3 == 0), ids, -100)}
        if kind.endswith("QuestionAnswering"):
            return {**batch, "start_positions": here.sum(1) // 2, "end_positions": here.sum(1) - 1}
        return {**batch, "labels": torch.tensor([0, 1, 1, 0])}

    if name not in FAST:
        with pytest.raises(Refused, match=r"cannot run without padding: .+; it takes the eager step"):
            RaggedStep(model, torch.optim.SGD(model.parameters(), lr=0.05))
        return
    for kind in kinds(name):
        if not kind.endswith(("ForSequenceClassification", "ForMaskedLM", "ForQuestionAnswering")):
            continue
        model = build(name, kind)
        if cut:
            model = apply(model, uneven(model))
        losses, states = [], []
        for make in (EagerStep, RaggedStep, functools.partial(RaggedStep, exact=True)):
            mine = copy.deepcopy(model)
            step = make(mine, torch.optim.SGD(mine.parameters(), lr=0.05, momentum=0.9))
            losses.append([float(step(step.prepare([labelled(kind)]))) for _ in range(5)])
            states.append(mine.state_dict())
        assert losses[0][0] != losses[0][-1]
        for fast_losses, fast in zip(losses[1:], states[1:], strict=True):
            assert fast_losses == pytest.approx(losses[0], rel=1e-5, abs=1e-5)
            for key, value in states[0].items():
                torch.testing.assert_close(fast[key], value, rtol=1e-4, atol=1e-5, msg=f"{key} of {kind} differs")


@pytest.mark.slow
@pytest.mark.skipif(not NEW, reason="needs transformers 5")
def test_one_graph(name: str) -> None:
    """A cut model is one graph for the compiler and for export, with the same logits at any number of rows and tokens."""
    model = build(name, attention="sdpa" if build(name)._supports_sdpa else "eager")
    small, batch = apply(model, uneven(model)), inputs_of(model)
    with torch.no_grad():
        expected = small(**batch).logits
        torch._dynamo.reset()
        compiled = torch.compile(small, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**batch).logits, expected, rtol=1e-5, atol=1e-5)
        if name in DECODE:
            exported = torch.export.export(small, (), batch).module()
            torch.testing.assert_close(exported(**batch).logits, expected, rtol=1e-5, atol=1e-5)
            with pytest.raises(Refused, match="has a decoder, whose steps depend on the data"):
                graph(small).__enter__()
            return
        with graph(small) as ready:
            traced = torch.export.export(ready.module, (), ready.batches[0], dynamic_shapes=ready.dynamic).module()
        for rows, length in ((4, LENGTH), (1, 2), (6, 31)):
            batch = inputs_of(model, rows, length)
            if "token_type_ids" in ready.batches[0]:
                batch["token_type_ids"] = batch["input_ids"] % 2
            torch.testing.assert_close(traced(**batch)[0], small(**batch).logits, rtol=1e-5, atol=1e-5)


def test_quantised_layers_and_adapters_are_refused(name: str) -> None:
    model = build(name)
    ticket, before = uneven(model), model.state_dict().keys()

    class Adapter(torch.nn.Module):
        """As adapter libraries do: a module around the linear it adapts."""

        def __init__(self, base: torch.nn.Module) -> None:
            super().__init__()
            self.base = base

    layer = of(model).layers[-1]
    for part in layer.linears:
        broken = copy.deepcopy(model)
        broken.set_submodule(part, Adapter(broken.get_submodule(part)))
        with pytest.raises(Refused, match=rf"{part} is a .+\.Adapter, not a plain nn.Linear"):
            apply(broken, ticket)
    assert model.state_dict().keys() == before
