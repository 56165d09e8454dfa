"""The page says what the run folder says, needs nothing from outside, and survives what is broken or missing."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

import earlybert as eb
from earlybert.cli.commands import COMMANDS
from earlybert.cli.parser import parser_of, underscored
from earlybert.config.finetune import Finetune
from earlybert.report.curves import thinned
from earlybert.report.folder import read, told_apart
from earlybert.report.numbers import Resampled, command

from .conftest import Page, read_json, read_page, run, write_history

FIGURES = [
    "mask-distance-heads",
    "mask-distance-neurons",
    "heads-kept",
    "neurons-kept",
    "coefficients-heads",
    "coefficients-neurons",
    "curves-search",
    "curves-train",
    "time",
    "step-parts",
    "size",
]


def report(folder: Path, *words: object) -> Page:
    page = folder / "page.html"
    assert run("report", folder, "--output", page, *words) == 0
    return read_page(page)


def test_every_number_equals_the_run_folder(compared: Path) -> None:
    page = read_page(compared / "report.html")  # written by the run itself
    metrics, versus, shown = read_json(compared / "metrics.json"), read_json(compared / "compare.json"), page.numbers
    numbers = {key: json.loads(value) for key, (value, _) in shown["run-1"].items()}
    expected: dict[str, Any] = {f"score.{name}": value for name, value in metrics["score"].items()}
    expected |= {key: metrics[key] for key in ("seconds", "flops", "disk_bytes", "train_rows", "validation_rows")}
    expected |= {f"parameters.{when}": metrics["parameters"][when] for when in ("before", "after")}
    for stage in ("search", "draw", "train"):
        keys = ("steps", "seconds", "flops", "mean_step_seconds")
        expected |= {f"{stage}.{key}": metrics["stages"][stage][key] for key in keys}
    for name, row in versus["rows"].items():
        expected |= {f"{name}.{key}": row[key] for key in ("seconds", "flops", "disk_bytes", "inference_ms_per_row")}
        expected[f"{name}.score"] = row["score"]["accuracy"]
        expected[f"{name}.parameters"] = row["parameters"]["after"]
    expected |= {
        f"saved.{name}": versus["saved"][name] for name in ("time", "fewer_epochs", "smaller_network", "search")
    }
    ticket = eb.Ticket.load(compared / "ticket.json")
    expected |= {"heads.kept": ticket.heads_kept, "neurons.kept": ticket.neurons_kept}
    for stage in ("search", "train"):
        parts = metrics["profile"][stage]["seconds"]
        assert list(parts) == ["host", "forward", "backward", "optimizer"]
        expected |= {f"profile.{stage}.{part}": seconds for part, seconds in parts.items()}
    dense = versus["rows"]["dense"]["profile"]["train"]["seconds"]
    expected |= {f"dense.profile.train.{part}": seconds for part, seconds in dense.items()}
    for when in ("before", "after"):
        expected |= {f"memory.{when}.{part}": size for part, size in metrics["memory"][when].items()}
        expected[f"flops_a_token.{when}"] = metrics["flops_a_token"][when]
    assert metrics["profile"] == read_json(compared / "profile.json")
    assert expected.items() <= numbers.items()
    for key, (value, text) in shown["run-1"].items():  # and what is read is that value, to its last digit
        plain = re.fullmatch(r"([+-]?[\d,]+(?:\.(\d+))?)%?", text)
        if plain:
            scale = 1e-12 if key.endswith("flops") else 100 if "%" in text else 1
            digit = 0.5001 * 10 ** -len(plain[2] or "")
            assert float(plain[1].replace(",", "")) == pytest.approx(scale * float(value), abs=digit), key
        if "profile." in key:
            assert text == f"{1e3 * float(value):.3g} ms"
        if key.startswith("memory."):
            assert text == f"{float(value) / 1e6:.1f} MB"
    assert page.figures["run-1"] == FIGURES
    scores = eb.Scores.load(compared / "scores.safetensors")
    tips = {found["data-tip"] for _, found in page.tags if "data-tip" in found}
    for layer, kept in enumerate(ticket.heads):
        for head in range(ticket.num_heads):
            state = "kept" if head in kept else "removed"
            score = f"{float(scores.heads[layer][head]):.6g}"
            assert f"layer {layer + 1}, head {head + 1}: {state}, coefficient {score}" in tips
        assert f"layer {layer + 1}: {len(ticket.neurons[layer])} of 64 neurons kept" in tips


def test_headline_names_saving_rival_and_doubt(copied: Path) -> None:
    versus = read_json(copied / "compare.json")
    versus["saved"]["time"] = 0.25
    versus["rows"]["dense_same_flops"]["score"]["accuracy"] = 0.625
    (copied / "compare.json").write_text(json.dumps(versus))
    text = report(copied).text
    assert "25% of the training time saved" in text
    assert "The honest rival, the dense model stopped at the same cost, reached 0.625: the ticket is" in text
    (copied / "compare.json").unlink()
    text = report(copied).text
    assert "What it saved is not known" in text
    assert "earlybert finetune --compare trains both" in text


def test_a_page_loads_nothing(compared: Path) -> None:
    page, content = read_page(compared / "report.html"), (compared / "report.html").read_bytes()
    assert len(content) < 2_000_000
    for tag, found in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert (found.get(name) or "#").startswith(("#", "data:")), (tag, found)
        assert not re.search(r"url\(\s*['\"]?(?!#|data:)", found.get("style") or "")
    assert "@import" not in page.styles
    assert "url(" not in page.styles
    policy = next(found["content"] for tag, found in page.tags if tag == "meta" and "http-equiv" in found)
    assert "default-src 'none'" in (policy or "")
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    links = {found["href"] for tag, found in page.tags if tag == "a"}
    assert {link.removeprefix("#") for link in links if link} <= set(ids)
    named = [found for tag, found in page.tags if tag == "svg"]
    for found in named:  # every figure has a name and a description
        assert all(part in ids for part in (found["aria-labelledby"] or "").split())
        assert len((found["aria-labelledby"] or "").split()) == 2


def test_maps_hold_the_distances_of_the_masks(copied: Path) -> None:
    """Against top-k masks of random coefficients, in float64 numpy; 4 heads of 3 layers, 64 neurons, as the run."""
    rng = np.random.default_rng(0)
    steps, layers, heads, neurons = 100, 3, 4, 64
    rows = rng.normal(size=(steps, layers * (heads + neurons))).cumsum(axis=0)
    write_history(copied / "history.bin", rows, heads, neurons)
    maps = report(copied).data["run-1-maps"]
    exact = rows.astype(np.float32).astype(np.float64)
    for kind, columns in (("heads", slice(0, layers * heads)), ("neurons", slice(layers * heads, None))):
        found, size = maps[kind], len(maps[kind]["steps"])
        assert (found["steps"][0], found["steps"][-1], size) == (1, steps, 60)
        masks = []
        for step in found["steps"]:
            size_of = np.abs(exact[step - 1, columns]).reshape(layers, -1)
            if kind == "heads":  # one removed in each layer
                masks.append(size_of > size_of.min(axis=1, keepdims=True))
            else:  # 40 % of 192 over all layers: 76.8, so 77
                masks.append(size_of > np.sort(size_of, axis=None)[76])
        bits = np.stack(masks)
        wanted = (bits[:, None] != bits[None]).mean(axis=3)  # [steps, steps, layers]
        assert found["top"] == pytest.approx(wanted.max())
        for number, expected in enumerate([wanted.mean(axis=2), *np.moveaxis(wanted, 2, 0)]):
            levels = np.frombuffer(base64.b64decode(found["maps"][number]), np.uint8)
            np.testing.assert_allclose(
                levels / 255 * found["top"], expected[np.triu_indices(size)], atol=found["top"] / 509
            )


@pytest.mark.parametrize("ended", ["settled", "cap"])
def test_the_stop_is_marked(copied: Path, ended: str) -> None:
    from safetensors.numpy import save_file

    scores = eb.Scores.load(copied / "scores.safetensors")
    about = {
        "format": "earlybert-scores-1",
        "model_type": "bert",
        "source": "coefficients",
        "steps": 12,
        "seed": 0,
        "info": {"ended": ended},
    }
    tensors = {name: np.stack([v.numpy() for v in getattr(scores, name)]) for name in ("heads", "neurons")}
    save_file(tensors, copied / "scores.safetensors", {"earlybert": json.dumps(about)})
    why = {"settled": "the mask had settled", "cap": "it was as long as asked for"}[ended]
    assert report(copied).text.count(f"★ stopped after 12 steps: {why}") == 2


def test_heads_are_shown_with_the_scores_they_were_drawn_from(copied: Path) -> None:
    scores = eb.Scores.load(copied / "scores.safetensors")
    others = replace(scores, heads=tuple(vector + 7 for vector in scores.heads), source="fisher")
    others.save(copied / "sensitivity.safetensors")
    text = report(copied).text
    assert f"{float(others.heads[1][2]):.6g}" in text
    assert f"{float(scores.heads[1][2]):.6g}" not in text
    assert "★ stopped after" in text  # as the search ended


def test_text_of_others_is_text(copied: Path) -> None:
    evil = "<img src=x onerror=alert(1)><script>window.hacked=1</script>\"'&$x$"
    metrics, config = read_json(copied / "metrics.json"), yaml.safe_load((copied / "config.yaml").read_text())
    before = [tag for tag, _ in report(copied).tags]
    metrics["task"], metrics["environment"]["device"], metrics["engine"] = evil, evil, evil
    metrics["environment"]["versions"][evil] = evil
    config["model"], config["text"] = evil, evil
    (copied / "metrics.json").write_text(json.dumps(metrics))
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    folder = copied.rename(copied.parent / "a<b>&'\"<svg onload=alert(1)>")
    page = report(folder)
    assert [tag for tag, _ in page.tags if tag in ("script", "img")] == [t for t in before if t in ("script", "img")]
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    assert page.text.count(evil) >= 5
    assert folder.name in page.text
    both = folder.parent / "both.html"  # folder names are inside figures and navigation
    assert run("report", folder, folder / "dense", "--output", both) == 0
    assert not any(name.startswith("on") for _, found in read_page(both).tags for name in found)


def test_runs_side_by_side(compared: Path, tmp_path: Path) -> None:
    folders = [compared, compared / "dense", compared / "dense_same_flops"]
    assert run("report", *folders, "--output", tmp_path / "all.html") == 0
    page = read_page(tmp_path / "all.html")
    assert [name for name in page.numbers if name.startswith("run-")] == ["run-1", "run-2", "run-3"]
    for number, folder in enumerate(folders, 1):
        metrics = read_json(folder / "metrics.json")
        assert json.loads(page.numbers[f"run-{number}"]["seconds"][0]) == metrics["seconds"]
        assert f"{metrics['score']['accuracy']:.4f} (" in page.text  # with its interval
    assert page.figures["run-2"] == [
        "curves-train",
        "time",
        "step-parts",
        "size",
    ]  # nothing to search, and nothing said to lack
    assert "Not shown" not in page.text
    assert (tmp_path / "all.html").stat().st_size < 2_000_000


LACKING = {
    "metrics.json": set(),
    "compare.json": set(),
    "ticket.json": {"heads-kept", "neurons-kept"},
    "scores.safetensors": set(),
    "history.bin": {name for name in FIGURES if name.startswith(("mask", "coef"))},
    "steps.jsonl": {"curves-search", "curves-train"},
}
"""By file, the figures that cannot be without it."""


@pytest.mark.parametrize("name", LACKING)
def test_what_is_missing_is_said(copied: Path, name: str) -> None:
    (copied / name).unlink()
    page = report(copied)
    assert set(page.figures["run-1"]) == set(FIGURES) - LACKING[name]
    assert f"{name} is not there: " in page.text


@pytest.mark.parametrize("content", [b"", b'{"stage": 1}\n', b"[1]\n", b"\xff\x00" * 200])
def test_what_is_broken_is_said(copied: Path, content: bytes) -> None:
    for name in (*LACKING, "predictions.safetensors", "profile.json"):
        (copied / name).write_bytes(content)
    page = report(copied)
    assert page.figures["run-1"] == []
    for name in (*LACKING, "profile.json"):
        assert f"{name} is broken: " in page.text or (name == "steps.jsonl" and b"{" not in content)


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path] * bool(path) + [place for key, value in pairs for place in leaves(value, (*path, key))]


@pytest.mark.parametrize("name", ["metrics.json", "compare.json"])
def test_no_broken_value_breaks_the_page(copied: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from earlybert.report import page

    def numbers_alone(run: Any, distances: Any) -> Iterator[Any]:
        page._spent(run)
        yield from ()

    monkeypatch.setattr(page, "drawings", numbers_alone)
    for file in ("history.bin", "steps.jsonl", "ticket.json", "scores.safetensors"):
        (copied / file).unlink()
    whole = (copied / name).read_text()
    for path in leaves(json.loads(whole)):
        for value in (None, "x", {}, float("nan")):
            tree = json.loads(whole)
            place = tree
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            (copied / name).write_text(json.dumps(tree))
            run_folder = read(copied)
            assert page.page([run_folder], [Resampled()]), (path, value)


def test_a_run_that_has_just_begun(copied: Path, tmp_path: Path) -> None:
    for file in copied.iterdir():
        if file.name not in ("config.yaml", "steps.jsonl", "history.bin"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    lines = (copied / "steps.jsonl").read_text().splitlines()[:7]
    (copied / "steps.jsonl").write_text("\n".join([*lines, lines[0][:20]]))
    page = report(copied)
    assert "This run is not finished" in page.text
    assert "So far: search 7 steps" in page.text
    (copied / "config.yaml").write_text("heads: [")
    assert "config.yaml is broken" in report(copied).text
    assert run("report", tmp_path / "none") == 2
    assert run("report") == 2
    assert run("report", copied, copied) == 2


def test_the_command_makes_the_same_run(compared: Path, copied: Path) -> None:
    def parsed(folder: Path) -> dict[str, Any]:
        words = shlex.split(command(read(folder)))
        assert words[:2] == ["earlybert", "finetune"]
        parser = parser_of("finetune", COMMANDS["finetune"])
        values = parser.parse_args(underscored(words[2:]), defaults=False).as_dict()
        return {name: value for name, value in values.items() if value is not None}

    values = parsed(compared)
    assert values.pop("compare") is True
    assert Finetune(**values) == Finetune(**yaml.safe_load((compared / "config.yaml").read_text()))
    odd = Finetune(train_file="my 'best' $file.csv", heads=4, neurons=0.25, exact=True, max_length=128, gate_lr=1e-3)
    (copied / "config.yaml").write_text(yaml.safe_dump(vars(odd)))
    (copied / "compare.json").unlink()
    assert Finetune(**parsed(copied)) == odd


def test_figures_are_files_for_a_paper(compared: Path, tmp_path: Path) -> None:
    assert run("report", compared, "--output", tmp_path / "page.html", "--figures", tmp_path / "figures") == 0
    layers = [f"mask-distance-{kind}-layer-{n}" for kind in ("heads", "neurons") for n in (1, 2, 3)]
    for name in (*FIGURES, *layers):
        assert (tmp_path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        root = ElementTree.parse(tmp_path / "figures" / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
        assert "var(--" not in (tmp_path / "figures" / f"{name}.svg").read_text()


def test_a_page_that_cannot_be_made_does_not_fail_the_run(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from earlybert.recipes import report as recipe
    from earlybert.report import page

    def broken(*_: object) -> bytes:
        raise ZeroDivisionError("no ink\nleft")

    monkeypatch.setattr(page, "page", broken)
    monkeypatch.setattr(recipe, "card", broken)
    assert run("finetune", *settings, "--output", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "report.html could not be made (no ink); try earlybert report" in said
    assert "the model card could not be written (no ink)" in said
    assert (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_large_models_and_many_runs_stay_under_2_mb(copied: Path, tmp_path: Path) -> None:
    """BERT-large: 24 layers, 16 heads, 4,096 neurons."""
    rng = np.random.default_rng(0)
    layers, heads, neurons, steps = 24, 16, 4096, 70
    write_history(copied / "history.bin", rng.normal(size=(steps, layers * (heads + neurons))), heads, neurons)
    ticket = eb.Ticket(((0, 1),) * layers, (tuple(range(64)),) * layers, "bert", heads, neurons)
    ticket.save(copied / "ticket.json")
    (copied / "scores.safetensors").unlink()
    folders = [copied, *(Path(shutil.copytree(copied, tmp_path / f"run{n}")) for n in range(2))]
    assert run("report", *folders, "--output", tmp_path / "all.html") == 0
    assert (tmp_path / "all.html").stat().st_size < 2_000_000


def test_thinned_curves_keep_their_mean() -> None:
    x, y = np.arange(1200.0), np.random.default_rng(0).normal(size=1200)
    few_x, few_y = thinned(x, y, 300)
    assert len(few_x) == len(few_y) == 300
    np.testing.assert_allclose([few_x.mean(), few_y.mean()], [x.mean(), y.mean()])
    np.testing.assert_allclose(few_y[0], y[:4].mean())


def test_runs_of_one_name_are_told_apart(copied: Path, tmp_path: Path) -> None:
    """As those of seeds are, which a comparison puts below the names of its rows."""
    folders = [tmp_path / "grid" / row / "seed-1" for row in ("dense", "ticket")]
    for folder in folders:
        shutil.copytree(copied, folder)
    runs = told_apart([read(folder) for folder in folders])
    assert [run.name for run in runs] == ["dense/seed-1", "ticket/seed-1"]
    assert [run.name for run in told_apart([read(copied)])] == [copied.name]
