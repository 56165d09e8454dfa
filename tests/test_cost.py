"""FLOPs from live shapes against torch's own counter, dense and cut."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

from earlybert import Ticket, apply
from earlybert.cost import count, masked
from earlybert.tasks.mlm import Objective
from earlybert.ticket.surgery import cut
from tests.conftest import tiny_batch, tiny_config, tiny_model, uneven


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("shape", [(4, 12), (1, 1), (7, 33)])
def test_against_flop_counter(family: str, cut: bool, shape: tuple[int, int]) -> None:
    model = tiny_model(family, attn_implementation="eager").train()
    if cut:
        model = apply(model, uneven(family))
    batch = tiny_batch(*shape)
    cost = count(model)
    with FlopCounterMode(display=False) as forward:
        model(**batch)
    with FlopCounterMode(display=False) as both:
        model(**batch).loss.backward()
    assert cost.forward([shape]) == forward.get_total_flops()
    assert cost.step([shape]) == both.get_total_flops()
    assert cost.step([shape, shape]) == 2 * cost.step([shape])
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert model.training


def test_ratio_of_the_paper_ticket_on_bert_base_shapes() -> None:
    """4 of 12 heads and 40 % of the neurons: 0.62 of the dense FLOPs (PAPER: 0.755 of its time)."""
    model = tiny_model("bert", hidden_size=768, num_attention_heads=12, num_hidden_layers=2, intermediate_size=3072)
    dense = count(model).step([(32, 128)])
    ticket = Ticket(((*range(8),),) * 2, ((*range(1843),),) * 2, "bert", 12, 3072)
    cut(model, ticket)
    assert count(model).step([(32, 128)]) / dense == pytest.approx(0.624, abs=0.01)


@pytest.mark.parametrize("pairs", [True, False])
def test_a_masked_step_costs_its_encoder_and_the_head_on_masked_places_only(pairs: bool) -> None:
    """Against the FLOP counter of torch, over a real forward and backward."""
    config = tiny_config("bert", attn_implementation="eager")
    model = (AutoModelForPreTraining if pairs else AutoModelForMaskedLM).from_config(config)
    rows, length, predictions = 4, 12, 7
    ids = torch.randint(5, 100, (rows, length))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "masked_positions": torch.arange(predictions),
        "masked_labels": torch.arange(predictions) + 5,
    }
    if pairs:
        batch["next_sentence_label"] = torch.zeros(rows, dtype=torch.long)
    objective = Objective(model)
    with FlopCounterMode(display=False) as counter:
        objective(batch).loss.backward()
    # The first linears' inputs need gradients, too: the embeddings are trained.
    assert masked(model, predictions).step([(rows, length)]) == counter.get_total_flops()
