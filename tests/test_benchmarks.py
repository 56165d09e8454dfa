"""The scripts that need a GPU, as far as they can be held without one."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script of that folder as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_every_part_on_a_gpu_writes_a_file_of_its_own(script: Any) -> None:
    parts = script("on_gpu").commands("cuda", Path("out"), quick=False)
    files = [words[words.index("--out") + 1] for words in parts.values() if "--out" in words]
    assert len(set(files)) == len(files) == len(parts) - 2  # the tests write none, and the run a folder


@pytest.mark.parametrize(("name", "shapes"), [("step_time", 5), ("pretrain_time", 3)])
def test_shapes_that_do_not_fit_are_left_out_and_said(
    name: str,
    shapes: int,
    script: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module: ModuleType = script(name)
    sizes = module.SIZES if name == "pretrain_time" else {"minilm": {}}
    asked: list[Any] = []

    def measure(size: str, shape: Any, *_: Any, **__: Any) -> list[dict[str, Any]]:
        asked.append(shape)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore")

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(script("step_time"), "matmul_rate", lambda _: 1e12)
    size = next(iter(sizes))
    monkeypatch.setattr(sys, "argv", [name, "--device", "cpu", "--models", size, "--out", str(tmp_path / "found.json")])
    module.main()
    assert len(asked) == shapes
    if name == "pretrain_time":
        assert all(len(shape) == 3 and all(type(number) is int for number in shape) for shape in asked)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"] == []
    assert len(found["left_out"]) == shapes
    assert set(found["left_out"].values()) == {"CUDA out of memory. Tried to allocate 20 GiB."}
    assert "left out, out of memory" in capsys.readouterr().out
