"""The refit against the normal equations in float64, and where the truth is known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from earlybert import Ticket, apply
from earlybert.anatomy import Refused, of
from earlybert.ticket.refit import refit

from ..conftest import HEADS, LAYERS, NEURONS, tiny_batch, tiny_model


def ticket_of(heads: tuple[int, ...], neurons: tuple[int, ...]) -> Ticket:
    return Ticket((heads,) * LAYERS, (neurons,) * LAYERS, "bert", HEADS, NEURONS)


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    return [tiny_batch(rows=8, length=24, seed=seed) for seed in range(count)]


def test_what_doubles_can_stand_in_for_is_restored() -> None:
    """Neurons 32 to 63 repeat 0 to 31: the kept half can give the whole output again."""
    model = tiny_model().eval()
    for layer in of(model).layers:
        up, down = model.get_submodule(layer.up), model.get_submodule(layer.down)
        up.weight.data[32:], up.bias.data[32:] = up.weight.data[:32], up.bias.data[:32]
        down.weight.data *= 2
    small = apply(model, ticket_of(tuple(range(HEADS)), tuple(range(32))))
    batch = tiny_batch(seed=99)
    expected = model(**batch).logits
    worse = (small(**batch).logits - expected).abs().max()
    results = refit(small, model, batches(12), ridge=1e-6)
    assert (small(**batch).logits - expected).abs().max() < 0.02 * worse
    assert all(result.after < 1e-3 for result in results)
    assert [result.name for result in results][:2] == [of(model).layers[0].output, of(model).layers[0].down]


def test_one_linear_against_the_normal_equations() -> None:
    model = tiny_model().eval()
    small = apply(model, ticket_of((0, 2), tuple(range(0, NEURONS, 2))))
    layer = of(small).layers[0]
    seen: dict[str, list[torch.Tensor]] = {"x": [], "y": []}
    grabs = [
        small.get_submodule(layer.output).register_forward_pre_hook(lambda _, inputs: seen["x"].append(inputs[0])),
        model.get_submodule(layer.output).register_forward_hook(lambda _, __, output: seen["y"].append(output)),
    ]
    data = batches(8)
    for batch in data:
        small(**batch)
        model(**batch)
    for grab in grabs:
        grab.remove()
    linear = copy.deepcopy(small.get_submodule(layer.output))
    refit(small, model, data, ridge=0.05)
    present = [batch["attention_mask"].bool() for batch in data[:6]]  # a quarter is kept back to check
    x = np.concatenate([rows[mask].detach().double().numpy() for rows, mask in zip(seen["x"], present, strict=False)])
    y = np.concatenate([rows[mask].detach().double().numpy() for rows, mask in zip(seen["y"], present, strict=False)])
    ones = np.hstack([x, np.ones((len(x), 1))])
    old = np.vstack([linear.weight.detach().double().numpy().T, linear.bias.detach().double().numpy()])
    gram = ones.T @ ones
    pull = 0.05 * np.diag(gram).mean()
    change = np.linalg.solve(gram + pull * np.eye(len(gram)), ones.T @ (y - ones @ old))
    new = small.get_submodule(layer.output)
    np.testing.assert_allclose(new.weight.detach().numpy(), (old + change)[:-1].T, atol=1e-2 * np.abs(change).max())
    np.testing.assert_allclose(new.bias.detach().numpy(), (old + change)[-1], atol=1e-2 * np.abs(change).max())


def test_what_does_not_generalise_is_dropped_and_modes_come_back() -> None:
    model = tiny_model()
    small = apply(model, ticket_of((0,), (0, 1, 2)))
    data = batches(2)
    # one example to fit a hundred columns, and a batch of other tokens to check: it cannot help
    data[0] = {name: value[:1, :4] if value.dim() > 1 else value[:1] for name, value in data[0].items()}
    before = {name: value.clone() for name, value in small.state_dict().items()}
    results = refit(small.train(), model.train(), data, ridge=1e-9)
    assert small.training
    assert model.training
    dropped = [result for result in results if result.after == result.before]
    for result in dropped:
        assert torch.equal(small.state_dict()[f"{result.name}.weight"], before[f"{result.name}.weight"])
    assert dropped
    for result in results:
        assert result.after <= result.before


def test_refused() -> None:
    model = tiny_model()
    small = apply(model, ticket_of((0,), (0, 1)))
    with pytest.raises(Refused, match="at least two batches"):
        refit(small, model, batches(1))
    with pytest.raises(Refused, match="cut from"):
        refit(small, tiny_model("distilbert"), batches(2))
