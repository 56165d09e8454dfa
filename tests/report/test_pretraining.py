"""Pages of pre-training runs: values are the folder's, the rival is named for what it costs, nothing breaks."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import earlybert as eb
from earlybert.cli.commands import COMMANDS
from earlybert.cli.parser import parser_of, underscored
from earlybert.config.pretrain import Pretrain
from earlybert.recipes import pretrain as recipe
from earlybert.report import page as page_module
from earlybert.report.folder import read
from earlybert.report.numbers import Resampled, command, second_phase
from earlybert.report.pretraining import curve, headline
from earlybert.train.steplog import read_steps

from .conftest import Page, read_json, read_page, run
from .test_page import FIGURES as FINETUNING
from .test_page import leaves, report

FIGURES = [*FINETUNING[: FINETUNING.index("time")], "losses", *FINETUNING[FINETUNING.index("time") :]]
FIGURES_DENSE = ["curves-train", "losses", "time", "step-parts", "size"]


@pytest.fixture
def both(pretrained: Path, tmp_path: Path) -> Path:
    """Both runs, to be broken."""
    return Path(shutil.copytree(pretrained, tmp_path / "both"))


def side(folder: Path) -> Page:
    page = folder / "side.html"
    assert run("report", folder / "ticket", folder / "dense", "--output", page) == 0
    return read_page(page)


def no_drawings(run: Any, distances: Any) -> Iterator[Any]:
    yield from ()


def change(file: Path, edit: Callable[[Any], object]) -> None:
    tree = read_json(file)
    edit(tree)
    file.write_text(json.dumps(tree))


def test_every_number_equals_the_run_folder(pretrained: Path) -> None:
    folder = pretrained / "ticket"
    page = read_page(folder / "report.html")  # written by the run itself
    metrics, ticket = read_json(folder / "metrics.json"), eb.Ticket.load(folder / "ticket.json")
    numbers = {key: json.loads(value) for key, (value, _) in page.numbers["run-1"].items()}
    expected: dict[str, Any] = {key: metrics[key] for key in ("seconds", "flops", "disk_bytes")}
    for key in ("score", "score_at_second_length"):
        assert set(metrics[key]) == {"mlm_loss", "masked_accuracy", "nsp_loss"}
        expected |= {f"{key}.{name}": value for name, value in metrics[key].items()}
    expected |= {f"parameters.{when}": metrics["parameters"][when] for when in ("before", "after")}
    for stage in ("search", "train"):
        keys = ("tokens_per_second", "flops_per_second")
        expected |= {f"speed.{stage}.{key}": metrics["speed"][stage][key] for key in keys}
        expected |= {f"profile.{stage}.{part}": s for part, s in metrics["profile"][stage]["seconds"].items()}
        lines = [line for line in read_steps(folder / "steps.jsonl") if line["stage"] == stage][:12]  # of phase 1
        assert {line["tokens"] for line in lines} == {8 * 24}
        expected[f"flops_a_token.{stage}"] = lines[0]["flops"] / lines[0]["tokens"]
    for stage in ("search", "draw", "train"):
        expected |= {f"{stage}.{key}": metrics["stages"][stage][key] for key in ("steps", "seconds", "flops")}
    for when in ("before", "after"):
        expected |= {f"memory.{when}.{part}": size for part, size in metrics["memory"][when].items()}
    expected |= {"heads.kept": ticket.heads_kept, "neurons.kept": ticket.neurons_kept}
    assert expected.items() <= numbers.items()
    assert page.figures["run-1"] == FIGURES
    assert "Not shown" not in page.text
    score = metrics["score"]
    assert f"Held-out loss {score['mlm_loss']:.3f}, {score['masked_accuracy']:.1%} of masked tokens found" in page.text
    assert f"{metrics['flops'] / 1e12:.4g} TFLOP, the search included" in page.text
    assert (
        f"{metrics['speed']['train']['tokens_per_second']:,.0f} tokens/s, its share of the device's peak" in page.text
    )
    assert not re.search(r"(?<![\d,.])64 tokens(?!/s)", page.text)  # a speed may end so
    assert "24 tokens 48 tokens loss, nats a masked token" in page.text
    assert f"{ticket.heads_kept} of 12 heads and {ticket.neurons_kept} of 192 neurons stay" in page.text
    # 80 % of 15 steps, then phase 2 with a learning rate that rises anew.
    assert "Phase 2 begins with step 13, at the dashed line." in page.text


def test_held_out_loss_is_over_all_steps(pretrained: Path) -> None:
    for name, searched, last in (("ticket", 12, 16), ("dense", 0, 20)):
        lines, points = list(read_steps(pretrained / name / "evaluations.jsonl")), curve(read(pretrained / name))
        assert [point["step"] for point in points] == [searched + step for step in range(4, last + 1, 4)]
        assert [point["mlm_loss"] for point in points] == pytest.approx([line["mlm_loss"] for line in lines])
        assert points[-1]["seconds"] == read_json(pretrained / name / "metrics.json")["elapsed"]


def test_the_rival_is_what_costs_the_same(both: Path) -> None:
    def said() -> str:
        return " ".join(headline(read(both / "ticket"), [read(both / "ticket"), read(both / "dense")]).sentences)

    alone = headline(read(both / "ticket"), [read(both / "ticket")]).sentences
    assert any("What it saved is not known: its honest rival, a dense pre-training run" in line for line in alone)
    mine = read_json(both / "ticket" / "metrics.json")

    def priced(flops: float, elapsed: float) -> Callable[[Any], object]:
        score = {**mine["score"], "mlm_loss": mine["score"]["mlm_loss"] - 0.25, "masked_accuracy": 0.5}
        return lambda tree: tree.update(flops=flops * mine["flops"], elapsed=elapsed * mine["elapsed"], score=score)

    change(both / "dense" / "metrics.json", priced(1.3, 0.7))
    assert "The dense run beside it, dense, reached" in said()
    assert "That is not the same cost, so it is no honest rival." in said()
    change(both / "dense" / "metrics.json", priced(1.04, 1.5))
    config = both / "dense" / "config.yaml"
    text = config.read_text()
    assert "\nrows: 4\n" in text
    config.write_text(text.replace("\nrows: 4\n", "\nrows: 7\n"))  # its micro-batches do not change what is held out
    page = side(both)
    assert "The honest rival, the dense run of the same cost, dense, reached a loss of " in page.text
    assert "and 50.0% with 1.04 times the FLOPs and 1.50 times the time of this run" in page.text
    assert "the loss of the ticket run is 0.250 higher, with one seed." in page.text
    assert page.figures["side-by-side"] == ["losses"]
    assert (page.figures["run-1"], page.figures["run-2"]) == (FIGURES, FIGURES_DENSE)
    assert "Not shown" not in page.text
    change(both / "dense" / "metrics.json", lambda tree: tree.update(corpus="another"))
    assert "dense, was scored on other held-out rows, so the two losses do not compare." in said()
    assert page_module._together([read(both / name) for name in ("ticket", "dense")]) is None


def test_beside_fine_tuning_runs(compared: Path, pretrained: Path, tmp_path: Path) -> None:
    folders = [compared, pretrained / "ticket", compared / "dense"]
    assert run("report", *folders, "--output", tmp_path / "all.html") == 0
    page = read_page(tmp_path / "all.html")
    assert [page.figures[f"run-{n}"] for n in (1, 2)] == [FINETUNING, FIGURES]
    assert "Not shown" not in page.text
    assert "What it saved is not known" in page.text  # a dense fine-tuning run is no rival
    keys = page.numbers["side-by-side"]
    assert {"score.accuracy", "score.mlm_loss", "train_rows", "elapsed", "speed.train.tokens_per_second"} <= set(keys)
    assert "speed.train.mfu" not in keys  # not known here, so no row of dashes
    assert "BERT, 3 layers of 32" in page.text


def test_speed_against_the_peak(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "drawings", no_drawings)
    change(both / "ticket" / "metrics.json", lambda tree: tree["speed"]["train"].update(mfu=0.3217))
    page = report(both / "ticket")
    assert "32.2% of the device's peak (MFU)" in page.text
    assert page.numbers["run-1"]["speed.train.mfu"] == ("0.3217", "32.2%")


LACKING = {
    "metrics.json": set(),
    "ticket.json": {"heads-kept", "neurons-kept"},
    "scores.safetensors": set(),
    "history.bin": {name for name in FIGURES if name.startswith(("mask", "coef"))},
    "steps.jsonl": {"curves-search", "curves-train"},
}


@pytest.mark.parametrize("name", LACKING)
def test_what_is_missing_is_said(both: Path, name: str) -> None:
    (both / "ticket" / name).unlink()
    page = report(both / "ticket")
    assert set(page.figures["run-1"]) == set(FIGURES) - LACKING[name]
    assert page.text.count("is not there: ") == 1
    assert f"{name} is not there: " in page.text


@pytest.mark.parametrize("content", [b"", b'{"stage": 1}\n', b"[1]\n", b"\xff\x00" * 200])
def test_what_is_broken_is_said(both: Path, content: bytes) -> None:
    for name in (*LACKING, "profile.json", "evaluations.jsonl"):
        (both / "ticket" / name).write_bytes(content)
    page = report(both / "ticket")
    assert page.figures["run-1"] == []
    for name in (*LACKING, "profile.json", "evaluations.jsonl"):
        assert f"{name} is broken: " in page.text or (name.endswith(".jsonl") and b"{" not in content)


def test_no_broken_value_breaks_the_page(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "drawings", no_drawings)
    dense, file = read(both / "dense"), both / "ticket" / "metrics.json"
    monkeypatch.setattr(page_module, "_together", lambda runs: None)
    for name in ("history.bin", "steps.jsonl", "evaluations.jsonl"):
        (both / "ticket" / name).unlink()
    whole = file.read_text()
    for path in leaves(json.loads(whole)):
        for value in (None, {}, float("nan")):
            tree = json.loads(whole)
            place = tree
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            file.write_text(json.dumps(tree))
            assert page_module.page([read(both / "ticket"), dense], [Resampled()] * 2), (path, value)


def test_runs_that_are_not_finished(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "drawings", no_drawings)
    folder = both / "ticket"
    for name in ("metrics.json", "evaluations.jsonl"):
        (folder / name).unlink()
    assert "This run is not finished" in report(folder).text
    lines = (folder / "steps.jsonl").read_text().splitlines()
    (folder / "steps.jsonl").write_text("\n".join(lines[:12]) + "\n")  # the search
    (folder / "ticket.json").unlink()
    page = report(folder)
    assert "Searched, not trained So far: search 12 steps." in page.text
    assert "Not shown" not in page.text
    (folder / "config.yaml").write_text("heads: [")
    assert "config.yaml is broken" in report(folder).text
    shutil.copy(both / "dense" / "metrics.json", folder)
    assert "Held-out loss" in report(folder).text  # its metrics say what it is


def test_a_fine_tuning_search_lacks_nothing(settings: list[str], tmp_path: Path) -> None:
    assert run("search", *settings, "--output", tmp_path / "run") == 0
    page = report(tmp_path / "run")
    assert "Searched, not trained So far: search 12 steps." in page.text
    assert "Not shown" not in page.text
    assert page.figures["run-1"][-3:] == ["curves-search", "time", "step-parts"]
    assert command(read(tmp_path / "run")).startswith("earlybert search ")


def test_the_command_makes_the_same_run(pretrained: Path, both: Path) -> None:
    def parsed(words: list[str]) -> Pretrain:
        parser = parser_of("pretrain", COMMANDS["pretrain"])
        values = parser.parse_args(underscored(words), defaults=False).as_dict()
        return Pretrain(**{name: value for name, value in values.items() if value is not None})

    for name in ("ticket", "dense"):
        words = shlex.split(command(read(pretrained / name)))
        assert words[:2] == ["earlybert", "pretrain"]
        assert parsed(words[2:]) == Pretrain(**yaml.safe_load((pretrained / name / "config.yaml").read_text()))
    change(both / "ticket" / "metrics.json", lambda tree: tree.update(processes=8))
    told = command(read(both / "ticket"))
    assert told.startswith("torchrun --nproc-per-node 8 -m earlybert pretrain --eval-every 4 ")


def test_one_phase_has_no_second(both: Path) -> None:
    assert second_phase(read(both / "ticket")) == 12
    assert second_phase(read(both / "dense")) == 15
    lines = [line for line in read_steps(both / "dense" / "steps.jsonl") if line["step"] <= 15]
    (both / "dense" / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert second_phase(read(both / "dense")) is None


def test_a_page_that_cannot_be_made_does_not_fail_the_run(
    both: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = both / "dense"
    (out / "report.html").unlink()

    def broken(*_: object) -> bytes:
        raise ZeroDivisionError("no ink\nleft")

    with monkeypatch.context() as patch:
        patch.setattr(page_module, "page", broken)
        assert run("pretrain", "--output", out, "--resume") == 0
    assert f"{out}/report.html could not be made (no ink); try earlybert report {out}" in capsys.readouterr().out
    assert not (out / "report.html").exists()
    assert run("pretrain", "--output", out, "--resume") == 0  # nothing is left to train
    assert read_page(out / "report.html").figures["run-1"] == FIGURES_DENSE


def test_another_process_than_the_main_one_writes_no_page(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr(recipe, "write_report", lambda run: written.append(run.path))
    begun = recipe.start({}, output=str(both / "dense"), resume=True)
    recipe.pretrain(begun)
    assert written == [both / "dense"]
    recipe.pretrain(begun, page=False)
    monkeypatch.setattr(type(begun.bench.ranks), "main", property(lambda self: False))
    recipe.pretrain(begun)
    assert len(written) == 1
