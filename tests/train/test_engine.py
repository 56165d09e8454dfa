"""Which step runs where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from earlybert import Refused
from earlybert.train import engine
from earlybert.train.fast import RaggedStep
from earlybert.train.step import EagerStep
from tests.conftest import tiny_config, tiny_model


@pytest.mark.parametrize(
    ("device", "alone", "several"), [("cpu", "fast", "fast"), ("cuda", "fast", "eager"), ("mps", "eager", "eager")]
)
def test_auto_is_fast_where_it_was_run_or_is_rehearsed(device: str, alone: str, several: str) -> None:
    assert engine.chosen("auto", torch.device(device)) == alone
    assert engine.chosen("auto", torch.device(device), 2) == several
    assert engine.chosen("fast", torch.device(device), 2) == "fast"
    assert engine.chosen("eager", torch.device(device)) == "eager"


def test_what_cannot_run_falls_back_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    bare = tiny_model("bert", head=False)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.0)
    assert type(engine.build("fast", bare, optimizer)) is EagerStep
    assert len(caplog.messages) == 1
    assert "computes padding: BertModel cannot run without padding" in caplog.messages[0]
    model = tiny_model("bert")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    assert type(engine.build("fast", model, optimizer)) is RaggedStep
    assert len(caplog.messages) == 1
    model.train().gradient_checkpointing_enable()  # layers would be computed again after the packed forward pass
    assert type(engine.build("fast", model, optimizer)) is EagerStep
    assert "gradient checkpointing is on" in caplog.messages[1]
    with pytest.raises(Refused, match="eager or fast"):
        engine.build("quick", model, optimizer)  # type: ignore[arg-type]


def test_a_head_of_ones_own_takes_the_eager_step(caplog: pytest.LogCaptureFixture) -> None:
    """By its name it reads the first token; it may pool over all of them."""

    class MeanBertForSequenceClassification(BertForSequenceClassification):
        def forward(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None) -> Any:
            states = self.bert(input_ids, attention_mask, position_ids=position_ids).last_hidden_state
            return SequenceClassifierOutput(logits=self.classifier(states.mean(1)))

    class Pooled(torch.nn.Module):
        def forward(self, states: Any) -> Any:
            return states

    own_part = tiny_model("roberta")
    own_part.classifier = Pooled()
    for model in (MeanBertForSequenceClassification(tiny_config("bert")), own_part):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        assert type(engine.build("fast", model, optimizer)) is EagerStep
        assert "its head is not one of transformers" in caplog.messages[-1]


def test_the_last_micro_batch_that_counts_is_the_last() -> None:
    """Gradients of several processes meet in it."""
    seen: list[bool] = []

    class Watched(EagerStep):
        def begin(self, *, last: bool) -> None:
            seen.append(last)

    model = tiny_model("bert")
    step = Watched(model, torch.optim.SGD(model.parameters(), lr=0.0))
    batch = {"input_ids": torch.full((2, 3), 7), "labels": torch.tensor([0, 1])}
    step(step.prepare([batch, batch, {**batch, "labels": torch.full((2,), -100)}]))
    assert seen == [False, True]
