"""Every family is found where its table says; everything else is refused with the list."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import BloomConfig, BloomModel

from earlybert import Refused
from earlybert.anatomy import SUPPORTED, of
from tests.conftest import HEADS, HIDDEN, LAYERS, NEURONS, tiny_batch, tiny_model


@pytest.mark.parametrize("head", [True, False])
def test_sizes_and_names(family: str, head: bool) -> None:
    model = tiny_model(family, head=head)
    anatomy = of(model)
    assert len(anatomy.layers) == LAYERS
    assert anatomy.whole
    assert (anatomy.num_heads, anatomy.num_neurons, anatomy.head_size) == (HEADS, NEURONS, HIDDEN // HEADS)
    for layer in anatomy.layers:
        down = model.get_submodule(layer.down)
        assert isinstance(down, nn.Linear)
        assert down.in_features == NEURONS


@pytest.mark.parametrize(
    ("layers", "groups", "inner", "runs"), [(4, 1, 1, 4), (4, 2, 2, 2), (3, 3, 1, 1), (2, 2, 2, 1), (6, 3, 2, 2)]
)
def test_albert_says_whether_a_stored_layer_runs_more_than_once(
    layers: int, groups: int, inner: int, runs: int
) -> None:
    if layers < groups * inner and transformers.__version__.startswith("4."):
        pytest.skip("transformers 4.57 runs no ALBERT of fewer layers than it stores")
    sizes = {"num_hidden_layers": layers, "num_hidden_groups": groups, "inner_group_num": inner, "embedding_size": 16}
    model = tiny_model("albert", **sizes).eval()
    anatomy, calls = of(model), 0

    def called(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.get_submodule(anatomy.layers[0].down).register_forward_hook(called)
    model(**tiny_batch(labels=False))
    assert calls == runs
    assert anatomy.repeats == (runs > 1)
    assert len(anatomy.layers) == groups * inner


def test_a_compiled_model_is_refused_and_what_was_compiled_is_not() -> None:
    model = tiny_model()
    compiled: Any = torch.compile(model)
    with pytest.raises(Refused, match=r"wrapped by torch\.compile; pass the model itself \(model\._orig_mod\)"):
        of(compiled)
    assert of(compiled._orig_mod) == of(model)


def test_other_models_are_refused_with_the_list() -> None:
    other = BloomModel(BloomConfig(hidden_size=32, n_layer=1, n_head=2, vocab_size=50))
    for model in (other, nn.Linear(2, 2), nn.DataParallel(tiny_model())):
        with pytest.raises(Refused) as error:
            of(model)
        assert all(name in str(error.value) for name in SUPPORTED)


def test_unsafe_models_are_refused() -> None:
    with pytest.raises(Refused, match="decoder"):
        of(tiny_model("bert", is_decoder=True))
    adapted = tiny_model()
    adapted._hf_peft_config_loaded = True
    with pytest.raises(Refused, match="adapters"):
        of(adapted)
    quantised = tiny_model()
    torch.nn.Module.__setattr__(quantised, "hf_quantizer", object())
    with pytest.raises(Refused, match="quantised"):
        of(quantised)
    odd = tiny_model()
    odd.bert.encoder.layer[0].output.dense = nn.Sequential(nn.Linear(NEURONS, HIDDEN))
    with pytest.raises(Refused, match="not a plain"):
        of(odd)


def test_the_page_about_families_is_true() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "families.md").read_text()
    table, line = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    table = table[table.index("MODERNBERT") :]
    assert table in (root / "src" / "earlybert" / "anatomy" / "modernbert.py").read_text()
    assert line in (root / "tests" / "families.py").read_text()
    rows = "".join(row for row in page.splitlines() if row.startswith("|"))
    assert set(re.findall(r"`([a-z0-9-]+)`", rows)) >= set(SUPPORTED)
    for path in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (root / "docs" / path).exists(), path
