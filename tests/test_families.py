"""What every family has to pass. Adding one is a table in `anatomy` and a line here."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, PreTrainedModel

import earlybert
from earlybert import Gates, Refused, Ticket, apply, rebind
from earlybert.anatomy import SUPPORTED, of
from earlybert.cost import count
from earlybert.export.graph import graph
from earlybert.ticket.surgery import mask
from earlybert.train.fast import RaggedStep
from earlybert.train.step import EagerStep

HEADS, NEURONS, VOCABULARY, LENGTH = 4, 64, 120, 12
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": HEADS, "intermediate_size": NEURONS}
GROUPED = {**SIZES, "num_attention_heads": 2 * HEADS, "num_key_value_heads": HEADS, "head_dim": 6}
BART = {
    "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": HEADS, "encoder_ffn_dim": NEURONS,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "num_labels": 3,
}  # fmt: skip
T5 = {
    "d_model": 32,
    "num_layers": 3,
    "num_decoder_layers": 1,
    "num_heads": HEADS,
    "d_kv": 6,
    "d_ff": NEURONS,
    "decoder_start_token_id": 0,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "electra": {**SIZES, "embedding_size": 16},
    "distilbert": {"dim": 32, "n_heads": HEADS, "n_layers": 3, "hidden_dim": NEURONS},
    "mpnet": SIZES,
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2/v3": {
        **SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True,
        "position_buckets": 8, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3,
    },
    "albert": {**SIZES, "embedding_size": 16},
    "albert/groups": {**SIZES, "embedding_size": 16, "num_hidden_layers": 6, "num_hidden_groups": 3},
    "modernbert": {**SIZES, "local_attention": 14, "global_attn_every_n_layers": 2},
    "modernbert/bias": {**SIZES, "attention_bias": True, "mlp_bias": True, "norm_bias": True},
    "vit": {**SIZES, "image_size": 12, "patch_size": 4, "encoder_stride": 4},
    "vit/no bias": {**SIZES, "image_size": 12, "patch_size": 4, "encoder_stride": 4, "qkv_bias": False},
    "bart": BART,
    "t5": {**T5, "feed_forward_proj": "gelu"},  # its own ReLU has kinks that finite differences trip over
    "t5/gated": {**T5, "feed_forward_proj": "gated-gelu"},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": HEADS, "n_inner": NEURONS, "n_positions": 64},
    "llama": {**GROUPED, "attention_bias": True},
    "mistral": GROUPED,
    "qwen2": {**SIZES, "num_key_value_heads": HEADS},
    "qwen3": GROUPED,
}  # fmt: skip
"""Sizes of a tiny model of each family, by model type; what follows a slash tells variants apart."""
TEXT = {
    "vocab_size": VOCABULARY, "max_position_embeddings": 64, "num_labels": 2, "use_cache": False,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")
DECODERS = {"BartForCausalLM"}
"""Without an encoder."""
FAST = {"bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "albert/groups"}
"""Those that can run without padding."""
DECODE = {"bart", "t5", "t5/gated"}
"""Those with a decoder: its steps depend on the data, so that a graph is for one number of rows and tokens only."""
NEW = not transformers.__version__.startswith("4.")


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def config_of(name: str, **changes: Any) -> Any:
    model_type = name.partition("/")[0]
    text = {} if model_type == "vit" else TEXT
    # Dropout would make two runs of one model differ; finite differences and fast steps need it off.
    config = AutoConfig.for_model(model_type, **{**text, **FAMILIES[name], **changes})
    for key in vars(config):
        if "dropout" in key or "drop" in key.split("_") or key.endswith("pdrop"):
            setattr(config, key, 0.0)
    return config


def kinds(name: str) -> dict[str, type[PreTrainedModel]]:
    """Every model that `transformers` has for this configuration: bare, and with each task head."""
    module = importlib.import_module(type(config_of(name)).__module__.replace("configuration", "modeling"))
    public = {kind: getattr(transformers, kind) for kind in vars(module) if hasattr(transformers, kind)}
    return {
        kind: its_class
        for kind, its_class in public.items()
        if inspect.isclass(its_class)
        and issubclass(its_class, PreTrainedModel)
        and "pretrained" not in kind.lower()
        and kind not in DECODERS
    }


def build(name: str, kind: str | None = None, attention: str = "eager", **changes: Any) -> Any:
    """A tiny model, the classifier of the family unless told otherwise."""
    torch.manual_seed(0)
    config = config_of(name, **changes)
    config._attn_implementation = attention
    auto = (
        transformers.AutoModelForImageClassification
        if "image_size" in FAMILIES[name]
        else transformers.AutoModelForSequenceClassification
    )
    model: Any = (getattr(transformers, kind) if kind else auto._model_mapping[type(config)])._from_config(
        config, attn_implementation=attention
    )
    # Biases and norms start at 0 and 1, and linears tiny: values with some size make every comparison mean something.
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def inputs_of(model: Any, rows: int = 4, length: int = LENGTH, labels: bool = False) -> dict[str, Tensor]:
    """What a person would pass: padded rows, or images; a decoder gets something to start from."""
    kind, config = type(model).__name__, model.config
    random = torch.Generator().manual_seed(1)
    if hasattr(config, "image_size"):
        batch = {"pixel_values": torch.randn(rows, 3, config.image_size, config.image_size, generator=random)}
    else:
        shape = (rows, 2, length) if kind.endswith(("MultipleChoice", "DoubleHeadsModel")) else (rows, length)
        batch = {"input_ids": torch.randint(5, VOCABULARY, shape, generator=random)}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["input_ids"][..., -1] = 2  # BART's classifier reads the last of these
        if length > 4:
            batch["attention_mask"][0, ..., length // 2 :] = 0
            batch["input_ids"][0, ..., length // 2 :] = 1
            batch["input_ids"][0, ..., length // 2 - 1] = 2
    if "decoder_input_ids" in inspect.signature(model.forward).parameters and not kind.endswith("Classification"):
        batch["decoder_input_ids"] = batch["input_ids"][:, :5].contiguous()
    if labels:
        batch["labels"] = torch.randint(0, 2, (rows,), generator=random)
    return batch


def uneven(model: Any) -> Ticket:
    """Other numbers of heads and neurons in every layer, and not the first ones."""
    layers, random = len(of(model).layers), torch.Generator().manual_seed(0)

    def kept(size: int, counts: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        orders = [torch.randperm(size, generator=random).tolist() for _ in range(layers)]
        return tuple(tuple(sorted(order[: counts[number % 3]])) for number, order in enumerate(orders))

    heads, neurons = kept(HEADS, (1, 3, 4)), kept(NEURONS, (7, 40, 64))
    return Ticket(heads, neurons, model.config.model_type, HEADS, NEURONS)


def masked(model: Any, ticket: Ticket) -> Any:
    reference = copy.deepcopy(model)
    mask(reference, ticket)
    return reference


def tensors(output: Any) -> dict[str, Tensor]:
    return {key: value for key, value in output.items() if isinstance(value, Tensor)}


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


LANGUAGE = ("ForMaskedLM", "LMHeadModel", "ForCausalLM", "ForConditionalGeneration")
"""Heads that share their weights with the embeddings."""


WAYS = {
    "import earlybert": ("earlybert.load", "Auto class"),
    "sys.modules['earlybert'] = None  # as if it were not installed": ("remote code",),
}
LOADING = """
import json, sys
{begin}
import transformers
from safetensors.torch import load_file

def load(folder, way):
    if way == "earlybert.load":
        return earlybert.load(folder, attn_implementation="eager")
    with open(folder + "/config.json") as file:
        config = json.load(file)
    auto = next(auto for auto, kind in config["auto_map"].items() if kind.endswith("." + config["architectures"][0]))
    trust = True if way == "remote code" else None
    return getattr(transformers, auto).from_pretrained(folder, attn_implementation="eager", trust_remote_code=trust)

found = []
for number, way in ((number, way) for number in range({count}) for way in {ways}):
    model = load("{folder}/" + str(number), way).requires_grad_(False)
    batch = load_file(f"{folder}/{{number}}.safetensors")
    expected = batch.pop("expected")
    found.append({{
        "number": number,
        "way": way,
        "error": float((model(**batch).logits - expected).abs().max()),
        "class": type(model).__module__ + "." + type(model).__name__,
        "type": model.config.model_type,
        "training": model.training,
        "ticket": model.config.earlybert["ticket"],
    }})
print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What fresh processes find in cut models of all families: a classifier of each, and each language model."""
    folder = tmp_path_factory.mktemp("families")
    saved: list[tuple[str, str | None]] = [(name, None) for name in FAMILIES]
    saved += [(name, kind) for name in FAMILIES for kind in kinds(name) if kind.endswith(LANGUAGE)]
    classes: list[str] = []
    for number, (name, kind) in enumerate(saved):
        model = build(name, kind)
        classes.append(f"{type(model).__module__}.{type(model).__name__}")
        small, batch = apply(model, uneven(model)), inputs_of(model)
        earlybert.save(small, folder / str(number))
        with torch.no_grad():
            save_file({**batch, "expected": small(**batch).logits}, folder / f"{number}.safetensors")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in FAMILIES}
    for begin, ways in WAYS.items():
        program = LOADING.format(ways=ways, begin=begin, count=len(saved), folder=folder.as_posix())
        place = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules")}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=place)
        assert done.returncode == 0, done.stderr
        for found in json.loads(done.stdout.splitlines()[-1]):
            name, kind = saved[found["number"]]
            assert found["class"] == classes[found["number"]], found
            results[name].append(found)
    return results


def test_saved_and_loaded_in_a_fresh_process(name: str, loaded: dict[str, list[dict[str, Any]]]) -> None:
    """By `earlybert.load`, by an Auto class once earlybert is imported, and by the code in the folder without it."""
    ticket = uneven(build(name))
    assert {found["way"] for found in loaded[name]} == {way for ways in WAYS.values() for way in ways}
    for found in loaded[name]:
        assert found["error"] <= 1e-6, found
        assert not found["training"]
        assert found["type"] == name.partition("/")[0]
        assert Ticket.from_dict(found["ticket"]) == ticket


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
