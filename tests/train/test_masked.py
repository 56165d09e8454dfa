"""Pre-training steps: packed against padded, many micro-batches against one, on rows of a real stream."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

from earlybert.data.corpus import Corpus
from earlybert.data.stream import Layout, Stream
from earlybert.ticket import Gates
from earlybert.train import engine
from earlybert.train.clock import Clock
from earlybert.train.lamb import lamb
from earlybert.train.loop import loop
from earlybert.train.masked import MaskedStep, RaggedMaskedStep, held_out
from earlybert.train.optimizer import adamw
from earlybert.train.schedule import polynomial
from tests.conftest import tiny_config

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def model_of(family: str, *, pairs: bool) -> Any:
    torch.manual_seed(0)
    dropout = {"dropout": 0.0, "attention_dropout": 0.0} if family == "distilbert" else NO_DROPOUT
    config = tiny_config(family, vocab_size=200, **dropout)
    return (AutoModelForPreTraining if pairs else AutoModelForMaskedLM).from_config(config).train()


def batches(corpus: Corpus, *, pairs: bool, rows: int, accumulate: int = 1) -> list[dict[str, torch.Tensor]]:
    return Stream(corpus, Layout(length=32, pairs=pairs), rows=rows, accumulate=accumulate, seed=1).step(0)


def without_types(found: list[dict[str, torch.Tensor]], family: str) -> list[dict[str, torch.Tensor]]:
    """DistilBERT takes none; RoBERTa has one kind only."""
    if family == "bert":
        return found
    return [{name: value for name, value in batch.items() if name != "token_type_ids"} for batch in found]


def after(model: Any, kind: type, micro_batches: list[dict[str, torch.Tensor]]) -> tuple[float, Any]:
    model = copy.deepcopy(model)
    step = kind(model, lamb(model, lr=1e-2))
    return step(step.prepare(micro_batches)).item(), model


@pytest.mark.parametrize(("family", "pairs"), [("bert", True), ("bert", False), ("roberta", False)])
def test_packed_steps_are_padded_steps(corpus: Corpus, family: str, pairs: bool) -> None:
    model = model_of(family, pairs=pairs)
    data = without_types(batches(corpus, pairs=pairs, rows=6, accumulate=2), family)
    assert not data[0]["attention_mask"].all()
    plain, one = after(model, MaskedStep, data)
    packed, two = after(model, RaggedMaskedStep, data)
    assert packed == pytest.approx(plain, abs=1e-5)
    for (name, a), b, start in zip(one.named_parameters(), two.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=2e-5, msg=name)
        assert not torch.equal(a, start) or "key.bias" in name or "pooler" in name, name


def test_the_engine_builds_them_and_says_what_keeps_them_off_a_graph() -> None:
    model = model_of("bert", pairs=True)
    optimizer = lamb(model, lr=1e-2)
    assert type(engine.build("eager", model, optimizer, masked=True)) is MaskedStep
    assert type(engine.build("fast", model, optimizer, masked=True)) is RaggedMaskedStep
    for made in (optimizer, adamw(model, lr=1e-3)):
        assert "bf16" in str(engine._no_graph(model, made, precision="no"))
    assert "AdamW and LAMB" in str(engine._no_graph(model, torch.optim.SGD(model.parameters()), precision="bf16"))
    optimizer.param_groups[0]["eps"] = 1.0
    assert "eps" in str(engine._no_graph(model, optimizer, precision="bf16"))
    assert "amsgrad" in str(
        engine._no_graph(model, torch.optim.AdamW(model.parameters(), amsgrad=True), precision="bf16")
    )


def test_four_micro_batches_are_one(corpus: Corpus) -> None:
    """Although they hold different numbers of masked tokens."""
    model = model_of("bert", pairs=True)
    parts = batches(corpus, pairs=True, rows=4, accumulate=4)
    (whole,) = batches(corpus, pairs=True, rows=16)
    counts = {int((part["masked_labels"] != -100).sum()) for part in parts}
    assert len(counts) > 1
    loss, one = after(model, MaskedStep, [whole])
    summed, many = after(model, MaskedStep, parts)
    assert summed == pytest.approx(loss, abs=1e-6)
    stock = model(
        **{name: whole[name] for name in ("input_ids", "attention_mask", "token_type_ids", "next_sentence_label")},
        labels=_labels(whole),
    )
    assert loss == pytest.approx(stock.loss.item(), abs=1e-6)
    for a, b in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def _labels(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """As stock models take them: `[rows, length]`."""
    labels = torch.full((batch["input_ids"].numel(),), -100)
    known = batch["masked_labels"] != -100
    labels[batch["masked_positions"][known]] = batch["masked_labels"][known]
    return labels.reshape(batch["input_ids"].shape)


def test_held_out_scores_are_means_over_all_masked_tokens_and_all_rows(corpus: Corpus) -> None:
    """Against stock logits, weighed by hand; the number of rows in a batch must not matter."""
    model = model_of("bert", pairs=True)
    (some,) = batches(corpus, pairs=True, rows=16)
    often = some["masked_labels"][some["masked_labels"] != -100].mode().values
    model.get_output_embeddings().bias.data[often] = 9.0  # it names this token everywhere, and is right now and then
    found = [
        held_out(model, Stream(corpus, Layout(length=32), rows=rows, split="validation").once()) for rows in (3, 50)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert model.training
    losses, following, right, tokens = [], [], 0, 0
    model.eval()
    for batch in Stream(corpus, Layout(length=32), rows=7, split="validation").once():
        names = ("input_ids", "attention_mask", "token_type_ids")
        with torch.no_grad():
            output = model(**{name: batch[name] for name in names})
        logits, labels = output.prediction_logits.reshape(-1, 200), _labels(batch).reshape(-1)
        losses += F.cross_entropy(logits, labels, reduction="none").tolist()  # 0 where no token is masked
        following += F.cross_entropy(
            output.seq_relationship_logits, batch["next_sentence_label"], reduction="none"
        ).tolist()
        right += int((logits.argmax(-1) == labels).sum())
        tokens += int((labels != -100).sum())
    assert 0 < right < tokens
    expected = {
        "mlm_loss": sum(losses) / tokens,
        "masked_accuracy": right / tokens,
        "nsp_loss": sum(following) / len(following),
    }
    assert found[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_search_and_training_learn_and_go_on_bit_equal(corpus: Corpus) -> None:
    """60 steps of the loop with gates: held-out loss falls, and a stream entered at step 30 gives the same weights."""

    def run(stops: tuple[int, ...]) -> tuple[Any, Gates]:
        model = model_of("bert", pairs=True)
        gates = Gates(model).attach()
        optimizer = lamb(model, lr=2e-2, gates=gates)
        step = MaskedStep(model, optimizer, gates=gates, l1=(1e-4, 1e-4))
        first = 0
        for last in stops:
            stream = Stream(corpus, Layout(length=32), rows=32, seed=1)
            loop(
                step,
                stream.starting_at(first),
                first=first,
                steps=last,
                schedule=polynomial(60, 0.2),
                clock=Clock(torch.device("cpu")),
                observers=[],
            )
            first = last
        return model, gates

    validation = Stream(corpus, Layout(length=32), rows=50, split="validation")
    before = held_out(model_of("bert", pairs=True), validation.once())
    model, gates = run((60,))
    after = held_out(model, validation.once())
    assert after["mlm_loss"] < before["mlm_loss"] - 0.3
    assert gates.heads.std() > 0
    other, again = run((30, 60))
    assert torch.equal(again.neurons, gates.neurons)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
