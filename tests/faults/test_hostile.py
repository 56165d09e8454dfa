"""Files and folders made to do harm, values that are no numbers, and a machine that has no more to give."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import earlybert as eb
from earlybert.cli.signals import Signals
from earlybert.data import shards
from earlybert.recipes import finetune as recipe
from earlybert.recipes.run import Run
from earlybert.tasks.predictions import Predictions
from earlybert.ticket import Gates
from earlybert.train import checkpoint
from earlybert.train.interrupt import Terminated
from earlybert.train.step import EagerStep
from earlybert.train.steplog import read_steps, totals
from tests.recipes.conftest import run

Said = pytest.CaptureFixture[str]


def other_model(model_folder: Path, tmp_path: Path, flags: list[str]) -> tuple[Path, list[str]]:
    copy = Path(shutil.copytree(model_folder, tmp_path / "copy"))
    return copy, ["--model", str(copy), *flags[2:], "--output", str(tmp_path / "run")]


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def test_pickled_weights_are_not_opened(model_folder: Path, tmp_path: Path, flags: list[str], capsys: Said) -> None:
    copy, words = other_model(model_folder, tmp_path, flags)
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "opened")))
    assert run("finetune", *words) == 2
    assert "pickled weights are not opened" in capsys.readouterr().err
    with pytest.raises(eb.Refused, match="no safetensors"):
        eb.load(copy)
    assert not (tmp_path / "opened").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("known", [True, False])
def test_code_in_a_model_folder_is_not_run(
    file: str,
    known: bool,
    model_folder: Path,
    tmp_path: Path,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor is anybody asked whether it should be, which would be a program that waits for an answer."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    copy, words = other_model(model_folder, tmp_path, flags)
    (copy / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Evil: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    about = json.loads((copy / file).read_text())
    about["auto_map"] = (
        dict.fromkeys(names, "evil.Evil") if file == "config.json" else {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    )
    if not known:
        about["model_type" if file == "config.json" else "tokenizer_class"] = "evil"
    (copy / file).write_text(json.dumps(about))
    assert run("search", *words, "--search-steps", "2") in (0, 2)
    assert (file == "config.json" and not known) == (not (tmp_path / "run").exists())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/secret.safetensors"])
def test_weights_outside_of_a_model_folder_are_not_read(
    name: str, model_folder: Path, tmp_path: Path, flags: list[str], capsys: Said
) -> None:
    copy, words = other_model(model_folder, tmp_path, flags)
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors, tmp_path / "secret.safetensors", {"format": "pt"})
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert run("finetune", *words) == 2
    assert "outside of the folder" in capsys.readouterr().err
    with pytest.raises(eb.Refused, match="outside of the folder"):
        eb.load(copy)


@pytest.mark.parametrize(
    "name", ["../00000.safetensors", "/etc/passwd", "sub/00000.safetensors", "00001.safetensors", 3]
)
def test_a_manifest_names_no_file_but_its_shards(name: Any, tmp_path: Path) -> None:
    from .mutate import manifest_file

    manifest = json.loads(manifest_file())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert shards.read_manifest(tmp_path) == manifest
    manifest["shards"][0]["file"] = name
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(eb.Refused, match="is broken"):
        shards.read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("task: sst2\nmagic: 1\n", "does not know: 'magic'"),
        ("heads: [1]\n", "heads must be"),
        ("lr: !!python/object/apply:os.system ['true']\n", "is broken"),
        ("lr: 2001-99-99\n", "is broken"),
        ("lr: " + "[" * 5000, "is broken"),
        ("seed: 0x" + "f" * 9000, "seed must be"),
        ("a: &a [x, x]\nb: &b [*a, *a]\ntask: *b\n", "is broken"),
        ("method: [" + "ticket, " * 9 + "]", "method must be text, got a list"),
        ("- 1\n", "is broken"),
    ],
)  # fmt: skip
def test_settings_that_were_tampered_with(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(eb.Refused) as refused:
        Run.open(tmp_path)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 600


def test_aliases_that_stand_for_more_than_memory_holds(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: 1, y: 2}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40))]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    began = time.monotonic()
    with pytest.raises(eb.Refused):
        Run.open(tmp_path)
    assert time.monotonic() - began < 5


def test_files_of_another_version(tmp_path: Path) -> None:
    from .mutate import readers

    for kind, reader in readers(tmp_path).items():
        if kind not in ("scores", "predictions", "checkpoint", "history", "manifest", "ticket"):
            continue
        content = reader.whole[0]
        for old, new in ((b"-1", b"-9"), (b'"format":1', b'"format":9')):
            at = content.find(b"earlybert-") if old == b"-1" else content.find(old)
            if at >= 0:
                content = content[:at] + content[at:].replace(old, new, 1)
        assert content != reader.whole[0], kind
        (tmp_path / reader.name).write_bytes(content)
        with pytest.raises(eb.Refused, match=r"version"):
            reader.read(tmp_path / reader.name)


def test_a_tensor_of_no_bytes_may_not_stand_for_a_million_million_rows(tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    eb.Scores((torch.ones(2),), (torch.ones(4),), "bert").save(file)
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["heads"] = {"dtype": "F32", "shape": [10**12, 0], "data_offsets": [0, 0]}
    header["neurons"] = {"dtype": "F32", "shape": [1, 6], "data_offsets": [0, 24]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    began = time.monotonic()
    with pytest.raises(eb.Refused, match="is broken"):
        eb.Scores.load(file)
    assert time.monotonic() - began < 5


def test_a_class_more_than_there_is_memory_for(tmp_path: Path) -> None:
    import numpy as np

    from earlybert.tasks import predictions

    rows = Predictions(np.array([0, 1]), np.array([0, 1]), ("f1",), 10**9)
    predictions.FILE.write(tmp_path / "p.safetensors", *rows._plain(""))
    with pytest.raises(eb.Refused, match="is broken"):
        Predictions.load(tmp_path / "p.safetensors")


def test_a_log_that_is_damaged_in_the_middle_is_refused_and_a_torn_end_is_not(tmp_path: Path) -> None:
    line = json.dumps({"stage": "train", "step": 1, "rows": 1, "flops": 1, "seconds": 1.0})
    file = tmp_path / "steps.jsonl"
    file.write_text(f'{line}\n{line}\n{{"stage": "tr')
    assert len(list(read_steps(file))) == 2
    for content in (f"{line}\n{{broken\n{line}\n", f"{line}\n5\n", f"\udcff\n{line}\n"):
        file.write_text(content, errors="surrogateescape")
        with pytest.raises(eb.Refused, match="is broken in line"):
            list(read_steps(file))
    file.write_text('{"stage": "train", "step": 1, "rows": "x", "flops": 1, "seconds": 1.0}\n')
    with pytest.raises(eb.Refused, match="is broken"):
        totals(file)


@pytest.mark.parametrize("metrics", ["[]", "{}", '{"score": 1}', "[" * 9000, "\x00"])
def test_metrics_that_were_tampered_with(metrics: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("task: sst2\n")
    (tmp_path / "metrics.json").write_text(metrics)
    with pytest.raises(eb.Refused, match=r"no metrics\.json that can be read"):
        Run.open(tmp_path).read_metrics()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_a_value_to_regress_on_that_is_no_number(value: str, tmp_path: Path, flags: list[str], capsys: Said) -> None:
    rows = "".join(f"a film,{n / 7}\n" for n in range(20))
    (tmp_path / "mine.csv").write_text(f"text,label\n{rows}a story,{value}\n")
    words = [*flags[:2], "--train-file", tmp_path / "mine.csv", "--problem", "regression", "--output", tmp_path / "run"]
    assert run("finetune", *words) == 2
    assert f"row 21: '{value}' is not a number" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_coefficients_that_are_not_finite_are_not_saved(
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Said,
) -> None:
    real, calls = EagerStep.__call__, 0

    def poisoned(self: EagerStep, batches: Any) -> Any:
        nonlocal calls
        calls += 1
        loss = real(self, batches)
        if calls == 8 and isinstance(self.gates, Gates):
            self.gates.neurons.data[0, 0] = float("nan")
        return loss

    monkeypatch.setattr(EagerStep, "__call__", poisoned)
    out = tmp_path / "run"
    assert run("search", *flags, "--search-steps", "12", "--output", out) == 3
    assert "the coefficients are not finite after step 8" in capsys.readouterr().err
    assert checkpoint.peek(out / "checkpoint.safetensors")["step"] == 4
    assert run("search", "--output", out, "--resume") == 0


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
    ids=["cpu", "python", "gpu"],
)  # fmt: skip
def test_memory_that_ran_out_is_one_line(
    error: BaseException,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Said,
) -> None:
    def full(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(EagerStep, "__call__", full)
    assert run("search", *flags, "--search-steps", "2", "--output", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert err == "earlybert: the memory ran out; lower --batch-size (and raise --accumulate), or --max-length.\n"


def test_other_errors_of_torch_are_not_hidden(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(EagerStep, "__call__", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        run("search", *flags, "--search-steps", "2", "--output", tmp_path / "run")


def test_a_clock_that_goes_backwards_changes_nothing(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*flags, "--search-steps", "4", "--epochs", "0.5", "--output"]
    assert run("finetune", *words, tmp_path / "plain") == 0
    now = [2e9]

    def backwards() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    assert run("finetune", *words, tmp_path / "back") == 0
    assert (tmp_path / "back/ticket.json").read_bytes() == (tmp_path / "plain/ticket.json").read_bytes()
    assert all(line["seconds"] > 0 for line in read_steps(tmp_path / "back/steps.jsonl"))


def test_sigterm_outside_of_the_loop_ends_with_the_command_that_goes_on(
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Said,
) -> None:
    real = recipe.search_stage

    def late(*words: Any) -> Any:
        found = real(*words)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return found

    monkeypatch.setattr(recipe, "search_stage", late)
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    assert run("search", *flags, "--search-steps", "3", "--output", tmp_path / "run") == 143
    assert time.monotonic() - began < 60
    assert f"to go on: earlybert search --output {tmp_path / 'run'} --resume." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_the_main_thread_listens_to_signals() -> None:
    raised: list[BaseException] = []

    def other() -> None:
        try:
            with Signals(at_once=True) as signals:
                signals.loaded()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert raised == []
    with Signals(at_once=False) as signals:
        signals.loaded()
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)


def test_names_in_labels_and_texts_are_text_in_the_report(tmp_path: Path, flags: list[str]) -> None:
    """A whole run on labels and texts that are HTML: what a browser would take for a tag is none."""
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    rows = [
        {"text": f"{evil} {'the film was very good and warm ' * 4} {n}", "label": f"{evil}{n % 2}"} for n in range(40)
    ]
    (tmp_path / "a<b>.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--train-file", tmp_path / "a<b>.jsonl", *("--search-steps", "3", "--epochs", "0.5", "--device", "cpu")]
    words += ["--precision", "no", "--align", "8", "--heads", "1", "--max-length", "64"]
    assert run("finetune", *flags[:2], *words, "--output", tmp_path / "r<img src=y>") == 0
    page = (tmp_path / "r<img src=y>" / "report.html").read_text()
    assert "<img src=" not in page
    assert "<script>alert" not in page
    assert "a<b>" not in page
    assert "r&lt;img src=y&gt;" in page
    saved = yaml.safe_load((tmp_path / "r<img src=y>" / "config.yaml").read_text())
    assert saved["train_file"].endswith("a<b>.jsonl")
    assert set(eb.load(tmp_path / "r<img src=y>" / "model").config.id2label.values()) == {f"{evil}0", f"{evil}1"}
