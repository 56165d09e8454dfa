"""The refit against the normal equations in float64, and where the truth is known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from earlybert import Ticket, apply
from earlybert.anatomy import Refused, of
from earlybert.ticket.refit import flops, refit

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
    result = refit(small, model, data, ridge=0.05)[0]
    masks = [batch["attention_mask"].bool() for batch in data]

    def tokens(which: str, batches: slice) -> np.ndarray:
        pairs = zip(seen[which][batches], masks[batches], strict=True)
        return np.concatenate([rows[mask].detach().double().numpy() for rows, mask in pairs])

    fitted, checked = slice(6), slice(6, None)  # a quarter is kept back to check
    ones, others = (np.hstack([x, np.ones((len(x), 1))]) for x in (tokens("x", fitted), tokens("x", checked)))
    y = tokens("y", fitted)
    old = np.vstack([linear.weight.detach().double().numpy().T, linear.bias.detach().double().numpy()])
    gram = ones.T @ ones
    pull = 0.05 * np.diag(gram).mean()
    change = np.linalg.solve(gram + pull * np.eye(len(gram)), ones.T @ (y - ones @ old))
    new = small.get_submodule(layer.output)
    np.testing.assert_allclose(new.weight.detach().numpy(), (old + change)[:-1].T, atol=1e-2 * np.abs(change).max())
    np.testing.assert_allclose(new.bias.detach().numpy(), (old + change)[-1], atol=1e-2 * np.abs(change).max())
    wanted = tokens("y", checked)
    for error, columns in ((result.before, old), (result.after, old + change)):
        assert error == pytest.approx(((wanted - others @ columns) ** 2).sum() / (wanted**2).sum(), rel=5e-3)


@pytest.mark.parametrize(("kind", "column"), [("bert", 1), ("llama", 0)])
def test_its_flops_are_those_of_products_and_solutions(kind: str, column: int) -> None:
    """Of 16 inputs from two heads and of 32 neurons, and a column of ones where there is a bias, to 32 outputs."""
    model = tiny_model(kind)
    small = apply(model, Ticket(((0, 2),) * LAYERS, (tuple(range(32)),) * LAYERS, kind, HEADS, NEURONS))
    expected = 0
    for width in (16 + column, 32 + column):
        x, missing = torch.ones(10, width), torch.ones(10, 32)  # of ten tokens
        with FlopCounterMode(display=False) as products:
            _ = x.T @ x, x.T @ missing
        expected += products.get_total_flops()
        expected += width**3 // 3 + 32 * 2 * width**2  # Cholesky's factor, and two triangular systems for each output
    assert flops(small, forward_small=0, forward_dense=0, tokens=10) == LAYERS * expected
    assert flops(small, forward_small=5, forward_dense=7, tokens=10) == LAYERS * expected + 12


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
