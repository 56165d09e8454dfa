"""The loss on masked places against the loss that stock models compute on all places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

import earlybert as eb
from earlybert.tasks.mlm import Objective, without_padding
from earlybert.train.pack import pack
from tests.conftest import FAMILIES, VOCABULARY, tiny_batch, tiny_config, tiny_model


def model_of(family: str, *, pairs: bool = False) -> Any:
    torch.manual_seed(0)
    model = (AutoModelForPreTraining if pairs else AutoModelForMaskedLM).from_config(tiny_config(family))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def masked_batch(*, pairs: bool = False, filled: int = 3) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same labels twice: as stock models take them, and as places with some that only fill up."""
    batch = tiny_batch(rows=5, length=14, labels=False)
    random = torch.Generator().manual_seed(1)
    chosen = (torch.rand(batch["input_ids"].shape, generator=random) < 0.3) & batch["attention_mask"].bool()
    true = torch.randint(5, VOCABULARY, batch["input_ids"].shape, generator=random)
    stock = {**batch, "labels": torch.where(chosen, true, -100)}
    places = torch.nonzero(chosen.reshape(-1)).reshape(-1)
    ours = {
        **batch,
        "masked_positions": F.pad(places, (0, filled)),
        "masked_labels": F.pad(true.reshape(-1)[places], (0, filled), value=-100),
    }
    if pairs:
        stock["next_sentence_label"] = ours["next_sentence_label"] = torch.tensor([0, 1, 1, 0, 1])
    return stock, ours


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_stock_model(family: str) -> None:
    model = model_of(family)
    stock, ours = masked_batch()
    expected = model(**stock).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = Objective(model)(ours).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_next_sentence_loss_is_added() -> None:
    model = model_of("bert", pairs=True)
    stock, ours = masked_batch(pairs=True)
    expected = model(**stock)
    sums = Objective(model)(ours)
    assert sums.loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    assert (float(sums.rows), float(sums.tokens)) == (5, float((stock["labels"] != -100).sum()))
    plain = model(**{name: value for name, value in stock.items() if "label" not in name})
    right = (plain.prediction_logits.argmax(-1) == stock["labels"]).sum()
    assert float(sums.right) == float(right)
    uncounted = Objective(model, accuracy=False)(ours)
    assert uncounted.right.isnan()
    assert torch.equal(uncounted.loss, sums.loss)


def test_accuracy_counts_what_the_largest_logit_names() -> None:
    """Labels set to the model's own answers, two of them wrong."""
    model = model_of("bert")
    _, ours = masked_batch()
    logits = model(input_ids=ours["input_ids"], attention_mask=ours["attention_mask"]).logits.reshape(-1, VOCABULARY)
    answers = logits[ours["masked_positions"]].argmax(-1)
    known = ours["masked_labels"] != -100
    answers[:2] = (answers[:2] + 1) % VOCABULARY
    sums = Objective(model)({**ours, "masked_labels": torch.where(known, answers, -100)})
    assert float(sums.right / sums.tokens) == pytest.approx(1 - 2 / int(known.sum()))


def test_sums_of_parts_make_the_whole() -> None:
    """A batch cut in two weighs every masked token the same."""
    model = model_of("bert", pairs=True)
    _, ours = masked_batch(pairs=True, filled=0)
    whole = Objective(model)(ours)
    length = ours["input_ids"].shape[1]
    parts = []
    for rows in (slice(0, 2), slice(2, 5)):
        inside = (ours["masked_positions"] >= rows.start * length) & (ours["masked_positions"] < rows.stop * length)
        part = {name: value[rows] for name, value in ours.items() if not name.startswith("masked")}
        part["masked_positions"] = ours["masked_positions"][inside] - rows.start * length
        part["masked_labels"] = ours["masked_labels"][inside]
        parts.append(Objective(model)(part))
    masked = sum(part.masked for part in parts) / sum(part.tokens for part in parts)
    following = sum(part.following for part in parts) / sum(part.rows for part in parts)
    assert (masked + following).item() == pytest.approx(whole.loss.item(), abs=1e-6)


def test_only_masked_places_go_through_the_vocabulary() -> None:
    model = model_of("bert")
    _, ours = masked_batch()
    seen = []
    model.cls.predictions.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    Objective(model)(ours)
    assert seen == [(1, len(ours["masked_positions"]), 32)]
    model(input_ids=ours["input_ids"])
    assert seen[1][:2] == ours["input_ids"].shape  # the hook is gone


def test_other_heads_are_refused() -> None:
    with pytest.raises(eb.Refused, match="no head for masked-language modelling"):
        Objective(tiny_model("bert"))
    with pytest.raises(eb.Refused, match="ElectraForPreTraining"):
        Objective(model_of("electra", pairs=True))


def test_places_without_padding() -> None:
    """The packed ids at the new places are the padded ids at the old ones."""
    _, ours = masked_batch(filled=2)
    batch = {name: ours[name] for name in ("input_ids", "attention_mask")}
    packed = pack(batch).inputs["input_ids"].reshape(-1)
    places = without_padding(ours["masked_positions"], ours["attention_mask"])
    assert torch.equal(packed[places], ours["input_ids"].reshape(-1)[ours["masked_positions"]])
