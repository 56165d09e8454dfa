"""What is particular to one family, and what is not what it looks like."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import earlybert
from earlybert import CutMismatch, Refused, Ticket, anatomy, apply
from earlybert.anatomy import of
from tests.families import HEADS, NEURONS, build, inputs_of, uneven


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_query_heads_go_with_their_key_and_value_head(name: str) -> None:
    """Head 2 of 4 is key and value head 2, and query heads 4 and 5 of 8; a head here has 6 features."""
    model = build(name)
    ticket = Ticket(((0, 1, 3),) * 3, (tuple(range(NEURONS)),) * 3, name, HEADS, NEURONS)
    small = apply(model, ticket).model.layers[1].self_attn
    full = model.model.layers[1].self_attn
    queries = [row for row in range(48) if row // 6 not in (4, 5)]
    keys = [row for row in range(24) if row // 6 != 2]
    assert torch.equal(small.q_proj.weight, full.q_proj.weight[queries])
    assert torch.equal(small.k_proj.weight, full.k_proj.weight[keys])
    assert torch.equal(small.v_proj.weight, full.v_proj.weight[keys])
    assert torch.equal(small.o_proj.weight, full.o_proj.weight[:, queries])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gpt2", "GPT2LMHeadModel"),
        ("llama", "LlamaForCausalLM"),
        ("mistral", "MistralForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
        ("bart", "BartForConditionalGeneration"),
        ("t5/gated", "T5ForConditionalGeneration"),
    ],
)
def test_a_cut_model_generates_with_its_cache_as_without(name: str, kind: str) -> None:
    model = build(name, kind)
    small, prompt = apply(model, uneven(model)), inputs_of(model)["input_ids"][1:, :5]
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    assert torch.equal(
        small.generate(prompt, use_cache=True, **options), small.generate(prompt, use_cache=False, **options)
    )


@pytest.mark.parametrize(
    ("name", "forgotten", "error"),
    [
        ("deberta-v2", {"head_count": ()}, CutMismatch),
        ("mpnet", {"settle": None}, RuntimeError),
        ("t5", {"settle": None}, RuntimeError),  # CutMismatch is one
    ],
)
def test_a_table_that_forgets_something_is_caught(
    name: str, forgotten: dict[str, Any], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these breaks in the middle, or runs and is wrong, when one head is left of four; the model stays whole."""
    model = build(name)
    family = of(model).family
    broken = dataclasses.replace(family, **forgotten)
    monkeypatch.setattr(anatomy, "FAMILIES", tuple(broken if f is family else f for f in anatomy.FAMILIES))
    ticket = Ticket(((1,), (2,), (3,)), (tuple(range(NEURONS)),) * 3, name, HEADS, NEURONS)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error):
        apply(model, ticket, inplace=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_models_of_quantisers_and_of_peft_are_refused() -> None:
    """What the libraries themselves make of a model, and merged adapters are welcome again."""
    quantised = torch.ao.quantization.quantize_dynamic(build("bert"), {torch.nn.Linear})
    with pytest.raises(Refused, match=r"quantized\..+, not a plain nn\.Linear"):
        of(quantised)

    class Packed(Tensor):
        """As torchao does: a weight that only looks like one."""

    packed = build("bert")
    linear = packed.bert.encoder.layer[0].attention.self.query
    linear.weight = torch.nn.Parameter(linear.weight.data.as_subclass(Packed))
    with pytest.raises(Refused, match=r"Packed, not a plain nn\.Linear"):
        of(packed)

    peft = pytest.importorskip("peft")
    for name, target in (("bert", "query"), ("gpt2", "c_attn"), ("llama", "q_proj")):
        adapted = peft.get_peft_model(build(name), peft.LoraConfig(target_modules=[target]))
        for model in (adapted, adapted.base_model.model):
            with pytest.raises(Refused, match="has adapters attached; merge or remove them first"):
                of(model)
        merged = adapted.merge_and_unload()
        apply(merged, uneven(merged))


@pytest.mark.filterwarnings("ignore")
def test_adapters_go_on_a_cut_model(tmp_path: Path) -> None:
    """LoRA on it trains, is saved, fits the cut model that `earlybert.load` gives, and merges."""
    peft = pytest.importorskip("peft")
    model = build("bert").eval()
    small = apply(model, uneven(model))
    earlybert.save(small, tmp_path / "base")
    lora = peft.LoraConfig(target_modules=["query", "dense"], init_lora_weights=False, modules_to_save=["classifier"])
    adapted = peft.get_peft_model(small, lora)
    batch = inputs_of(model)
    adapted(**batch).logits.sum().backward()
    assert all(
        p.grad is not None for name, p in adapted.named_parameters() if "lora_B" in name and "pooler" not in name
    )
    expected = adapted.eval()(**batch).logits
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(earlybert.load(tmp_path / "base"), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(**batch).logits, expected)
    merged = again.merge_and_unload()
    torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    earlybert.save(merged, tmp_path / "merged")
    torch.testing.assert_close(earlybert.load(tmp_path / "merged")(**batch).logits, merged(**batch).logits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["IA3Config", "LoHaConfig", "PromptTuningConfig", "PrefixTuningConfig"])
def test_other_adapters_are_refused(kind: str) -> None:
    peft = pytest.importorskip("peft")
    settings: dict[str, dict[str, Any]] = {
        "IA3Config": {"target_modules": ["key"], "feedforward_modules": []},
        "LoHaConfig": {"target_modules": ["key"]},
    }
    prompts: dict[str, Any] = {"task_type": "SEQ_CLS", "num_virtual_tokens": 3}
    adapted = peft.get_peft_model(build("bert"), getattr(peft, kind)(**settings.get(kind, prompts)))
    with pytest.raises(Refused, match="has adapters attached; merge or remove them first"):
        of(adapted)


@pytest.mark.filterwarnings("ignore")
def test_a_cut_model_can_be_quantised() -> None:
    model = build("bert").eval()
    small, batch = apply(model, uneven(model)), inputs_of(model)
    quantised = torch.ao.quantization.quantize_dynamic(small, {torch.nn.Linear})
    with torch.no_grad():
        torch.testing.assert_close(quantised(**batch).logits, small(**batch).logits, rtol=0.1, atol=0.1)


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = build("bert", "BertForMaskedLM")
    small = apply(model, uneven(model)).eval()
    earlybert.save(small, tmp_path / "out")
    loaded = earlybert.load(tmp_path / "out")
    for now in (small, loaded):
        assert now.get_output_embeddings().weight is now.get_input_embeddings().weight
    batch = inputs_of(model)
    torch.testing.assert_close(loaded(**batch).logits, small(**batch).logits)
    optimizer = torch.optim.AdamW(model.parameters())
    held = {id(p) for group in earlybert.rebind(optimizer, model, small).param_groups for p in group["params"]}
    assert held == {id(p) for p in small.parameters()}


def test_linears_tied_to_one_another_are_refused() -> None:
    model = build("bert")
    first, second = (layer.intermediate.dense for layer in model.bert.encoder.layer[:2])
    second.weight = first.weight
    with pytest.raises(Refused, match=r"layer\.0\.intermediate\.dense and .+layer\.1\.intermediate\.dense share"):
        of(model)


def test_the_graph_is_not_for_layers_that_run_more_than_once() -> None:
    from earlybert.train.engine import _no_graph
    from earlybert.train.optimizer import adamw

    def why(name: str) -> str:
        model = build(name)
        return _no_graph(model, adamw(model, lr=1e-3), precision="bf16") or ""

    assert "more than once" in why("albert")
    assert "more than once" not in why("bert")


def test_decoders_of_encoder_decoders_are_refused() -> None:
    with pytest.raises(Refused, match="decoder"):
        of(build("bart", "BartForCausalLM"))
    with pytest.raises(Refused, match="decoder"):
        of(build("gpt2", "GPT2LMHeadModel", add_cross_attention=True))
