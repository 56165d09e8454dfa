"""Tables of the paper: their files, shared runs, what is written, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from earlybert.anatomy import Refused
from earlybert.config.checks import BadSetting
from earlybert.recipes.comparison.comparison import Comparison
from earlybert.recipes.reproduce import experiment as files
from earlybert.recipes.reproduce.claims import CHECKS
from earlybert.recipes.reproduce.estimate import SEARCH, TICKET, estimate
from earlybert.recipes.reproduce.experiment import SCALES, Scale, experiment, pretrains
from earlybert.recipes.reproduce.page import load, page
from earlybert.recipes.reproduce.record import Record
from earlybert.recipes.reproduce.run import reproduce
from earlybert.recipes.reproduce.studies import Pretraining, pretraining
from earlybert.recipes.run import Run
from earlybert.train.interrupt import Terminated
from tests.recipes.conftest import run
from tests.recipes.study.test_study import PRETRAIN

ONE = {
    "title": "Table A",
    "caption": "A ticket against the dense model.",
    "tasks": ["sst2"],
    "methods": {"dense": None, "dense_same_flops": {"like": "ticket"}, "ticket": None},
    "published": {"dense": {"sst2": 91.7}, "ticket": {"sst2": 90.71}},
    "saved": {"ticket": 42.97},
    "remarks": ["The paper's cell is odd."],
    "claims": [
        {"says": "The ticket is better.", "check": "above", "rows": ["ticket", "dense"]},
        {"says": "It saves something.", "check": "saves", "row": "ticket", "low": 0, "high": 99},
    ],
}
TWO = {
    "title": "Figure B",
    "caption": "Learning rates.",
    "tasks": ["sst2"],
    "methods": {
        "dense": None,
        "dense_same_flops": {"like": "x1"},
        "x1": {"method": "ticket", "lr": 1e-3},
        "x2": {"method": "ticket", "lr": 2e-3},
    },
    "plot": {"x": "lr"},
    "small": {"methods": {"x1": {"lr": 4e-3}}},
}
MAPS = {**ONE, "title": "Figure C", "claims": [], "maps": {"row": "ticket", "layer": 2}}
COMMON = {"recipe": "paper", "dense_epochs": 1, "epochs": 1, "search_epochs": 0.5, "seeds": [1], "train_rows": 40}


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "paper"
    folder.mkdir()
    for name, content in {"one": ONE, "two": TWO, "maps": MAPS, "scales": {"paper": COMMON, "small": COMMON}}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setattr(files, "folder", lambda: folder)
    return folder


@pytest.fixture
def given(flags: list[str]) -> dict[str, Any]:
    words = {
        flag.removeprefix("--").replace("-", "_"): text for flag, text in zip(flags[::2], flags[1::2], strict=True)
    }
    plain = {name: yaml.safe_load(text) for name, text in words.items() if name != "task"}
    return {**plain, "precision": "no"}


def test_tables_share_runs_and_say_what_they_came_to(tables: Path, given: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second, third = reproduce(["one", "two", "maps"], "small", out, given)

    # dense, its rival and the ticket of the first are the third's too; dense and the ticket (x2) are the second's
    made = sorted(folder.name for folder in (out / "runs").iterdir())
    assert len(made) == 3 + 2
    assert (out / "one/sst2/dense/seed-1").resolve() == (out / "two/sst2/dense/seed-1").resolve()
    assert (out / "one/sst2/ticket/seed-1").resolve() == (out / "two/sst2/x2/seed-1").resolve()
    assert (out / "one/sst2/ticket/seed-1").resolve() == (out / "maps/sst2/ticket/seed-1").resolve()

    metrics = Run.open(out / "one/sst2/ticket/seed-1").read_metrics()
    dense = Run.open(out / "one/sst2/dense/seed-1").read_metrics()
    row = first.rows["ticket"]
    assert row.scores == {"sst2": pytest.approx(100 * metrics["score"]["accuracy"])}
    assert row.flops == pytest.approx(metrics["flops"] / dense["flops"])
    assert row.seconds == pytest.approx(metrics["seconds"] / dense["seconds"])
    assert [claim.says for claim in first.claims] == ["The ticket is better.", "It saves something."]
    text = (out / "one.md").read_text()
    assert f"{row.scores['sst2']:.2f} (90.71)" in text
    assert f"{row.seconds:.2f} (0.57)" in text
    assert "The paper's cell is odd." in text
    assert "earlybert reproduce one --scale small --data-dir DATA" in text
    assert str(tmp_path) not in text + (out / "one.json").read_text()  # results are published

    assert second.figures == ["two.svg"]
    assert third.figures == ["maps-heads.svg", "maps-neurons.svg"]
    for file in (*first.figures, *second.figures, *third.figures):
        assert (out / file).read_text().startswith("<?xml")
    whole = (out / "reproduction.md").read_text()
    assert "| Table A | The ticket is better. |" in whole
    assert whole == page(load(out))

    before = {file: file.stat().st_mtime_ns for file in (out / "runs").rglob("metrics.json")}
    again = reproduce(["one"], "small", out, given)
    assert again == [first]
    assert before == {file: file.stat().st_mtime_ns for file in (out / "runs").rglob("metrics.json")}

    # another setting is another run beside the first, and what does not depend on it is not run again
    reproduce(["one"], "small", out, {**given, "neurons": 0.2})
    assert len(list((out / "runs").iterdir())) == 5 + 2


def test_a_record_comes_back(tmp_path: Path, tables: Path, given: dict[str, Any]) -> None:
    (record,) = reproduce(["one"], "small", tmp_path / "out", given)
    assert Record.load(tmp_path / "out" / "one.json").markdown() == record.markdown()
    (tmp_path / "bad.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(Exception, match="is no result of earlybert reproduce"):
        Record.load(tmp_path / "bad.json")


ROOT = Path(__file__).parents[3]


def test_the_page_of_the_docs_is_made_from_the_results(tmp_path: Path) -> None:
    results = ROOT / "benchmarks" / "results" / "reproduction"
    assert run("reproduce", "--results", results, "--output", tmp_path) == 0
    assert load(results)
    again = page(load(results), pictures="../benchmarks/results/reproduction/")
    assert (ROOT / "docs" / "reproduction.md").read_text() == again
    assert run("reproduce", "--results", tmp_path, "--output", tmp_path) != 0


@pytest.mark.parametrize("name", files.names())
@pytest.mark.parametrize("scale", SCALES)
def test_every_file_is_one_that_runs(name: str, scale: Scale) -> None:
    if not files.has(name, scale):
        with pytest.raises(BadSetting, match=f"{name} has no {scale} scale"):
            experiment(name, scale)
        return
    said = files.read(name)
    each = pretraining(name, scale, {}) if files.pretrains(name) else experiment(name, scale)
    rows = {*said.get("methods", ()), *said.get("runs", ())} if files.pretrains(name) else {*said["methods"]}
    rows |= {row for section in SCALES for row in (said.get(section) or {}).get("runs", ())}
    assert {*each.published, *each.saved} <= rows
    assert each.caption.endswith(".")
    assert [claim for claim in each.claims if claim.check in CHECKS] == list(each.claims)
    if isinstance(each, Pretraining):
        return
    methods = {each.comparison.method_of(row) for row in each.comparison.methods}
    assert "dense" in methods
    assert {"dense_same_flops", "dense_same_time"} & methods or each.maps  # every comparison has the rival
    if scale == "paper":
        assert each.comparison.settings["model"].startswith("bert-")
        assert 0 < estimate(each.comparison).hours < 100


def test_every_table_and_figure_of_the_paper_is_there() -> None:
    wanted = {f"table{number}" for number in range(1, 10)} | {"figure2", "figure3", "figure4"}
    assert wanted | {"figure1_pretraining", "figure1_finetuning", "table2_large", "imp", "equal_time"} == set(
        files.names()
    )


@pytest.mark.slow
def test_pre_training_beside_the_paper_s_numbers(
    tables: Path,
    given: dict[str, Any],
    corpus_folder: Path,
    data_dir: Path,
    tmp_path: Path,
) -> None:
    study = {
        "base": "pretraining.yaml",
        "title": "Table P",
        "caption": "Pre-trained.",
        "runs": {"BERT": {"method": "dense"}, "ticket": {"share": 0.75}},
        "published": {"BERT": {"sst2": 90.48}},
        "changes": {"ticket": 1.96},
        "claims": [
            {"says": "The ticket is better.", "check": "above", "rows": ["ticket", "BERT"]},
            {"says": "It saves something.", "check": "saves", "row": "ticket", "low": 0, "high": 90},
        ],
    }
    searching = {
        "base": "pretraining.yaml",
        "title": "Figure P",
        "caption": "Masks.",
        "runs": {"search": {"method": "search"}},
        "tasks": [],
        "small": {"pretrain": {"search_steps": 12}},
        "claims": [
            {"says": "It settles.", "check": "settles", "row": "search", "kind": "heads"},
            {"says": "It rises.", "check": "rises_later", "row": "search", "kind": "neurons"},
        ],
    }
    finetune = {"max_length": 16, "device": "cpu", "precision": "no", "dense_epochs": 1, "train_rows": 40}
    base = {"small": {"pretrain": PRETRAIN, "tasks": ["sst2"], "finetune": finetune}}
    for name, content in {"pretraining": base, "p": study, "f": searching}.items():
        (tables / f"{name}.yaml").write_text(yaml.safe_dump(content))
    places = {"corpus": str(corpus_folder), "data_dir": str(data_dir)}
    out = tmp_path / "out"
    first, second = reproduce(["p", "f"], "small", out, places)
    dense = json.loads(next((out / "pretraining/pretrain").glob("dense-*/metrics.json")).read_text())
    ticket = json.loads(next((out / "pretraining/pretrain").glob("ticket-*/metrics.json")).read_text())
    assert first.rows["ticket"].flops == pytest.approx(ticket["flops"] / dense["flops"])
    assert first.more["ticket"]["steps"] == "6 + 15"
    assert first.more["BERT"]["held-out loss"] == pytest.approx(dense["score"]["mlm_loss"])
    assert first.more["ticket"]["change"].endswith("(+1.96%)")
    assert first.claims[1].answer == "held"
    assert [claim.evidence[:5] for claim in second.claims] == ["after", "the n"]
    assert {"p-losses.svg", "f-mask-distance-heads.svg"} <= {*first.figures, *second.figures}
    assert str(tmp_path) not in (out / "p.md").read_text() + (out / "p.json").read_text()
    with pytest.raises(BadSetting, match="say --corpus FOLDER"):
        reproduce(["p"], "small", out, {})


def test_no_text_is_prepared_before_the_cost_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    corpus, text, out = tmp_path / "corpus", tmp_path / "text.txt", tmp_path / "out"
    text.write_text("One sentence. Another one.\n\n")
    words = ("reproduce", "table4", "--scale", "paper", "--corpus", str(corpus), "--text", f"[{text}]")
    assert run(*words, "--check") == 0
    assert run(*words, "--output", str(out)) == 2  # it needs a GPU
    assert not corpus.exists()
    assert not out.exists()
    with pytest.raises(Refused, match="holds no corpus; give text files"):
        reproduce(["table4"], "small", out, {"corpus": str(corpus)})


def test_force_begins_what_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, given in (("table7", {}), ("table4", {"corpus": str(tmp_path), "text": ["a.txt"]})):
        table = (pretraining if pretrains(name) else experiment)(name, "paper", given)
        with pytest.raises(Refused, match="--force"):
            table.check()
        table.check(force=True)


def test_hours_grow_with_what_is_asked() -> None:
    one, three = (experiment("table7", "paper", {"seeds": seeds}).comparison for seeds in ([1], [1, 2, 3]))
    assert estimate(three).hours == pytest.approx(3 * estimate(one).hours)
    assert estimate(experiment("table2_large", "paper").comparison).gigabytes > estimate(one).gigabytes


def test_a_search_is_paid_for_where_there_is_one_and_a_kept_one_is_part_of_the_training() -> None:
    def hours(row: dict[str, object], **more: object) -> float:
        rows = {"ticket": {}, "row": row} if row.get("method") == "random_same_widths" else {"row": row}
        given = {"tasks": ["sst2"], "methods": rows, "seeds": [1], "epochs": 2, "search_epochs": 0.5, **more}
        return estimate(Comparison.of(given)).hours

    epoch = hours({"method": "dense", "dense_epochs": 1})
    search, ticket = 0.5 * SEARCH * epoch, 2 * TICKET * epoch
    assert hours({"method": "dense"}) == pytest.approx(3 * epoch)
    assert hours({"method": "imp"}) == pytest.approx(6 * 3 * epoch)
    assert hours({"method": "random"}) == pytest.approx(ticket)
    assert hours({"method": "ticket"}) == pytest.approx(search + ticket)
    assert hours({"method": "random_same_widths"}) == pytest.approx(2 * (search + ticket))
    assert hours({"method": "ticket", "weights": "keep"}) == pytest.approx(search + 0.75 * ticket)


def test_stopped_it_says_the_command_that_goes_on_with_all_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise Terminated("earlybert finetune --output one-run-of-many --resume")

    monkeypatch.setattr("earlybert.recipes.compare._refuse_unusable", lambda *_: None)  # there are no data
    monkeypatch.setattr("earlybert.recipes.compare.run_grid", stopped)
    words = ["table7", "figure2", "--data-dir", str(tmp_path), "--seeds", "[1,2]", "--output", str(tmp_path / "my out")]
    assert run("reproduce", *words) == 143
    said = capsys.readouterr().err.strip()
    asked = shlex.split(said.removeprefix("earlybert: stopped; to go on: earlybert ").removesuffix("."))
    assert asked[:3] == ["reproduce", "table7", "figure2"]
    assert set(asked) == {"reproduce", "--scale", "small", *words}
    assert run(*asked) == 143  # it is taken as it stands, and means the same
    assert capsys.readouterr().err.strip() == said


def test_the_command_lists_counts_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reproduce", "--list") == 0
    assert "table5" in capsys.readouterr().out
    assert run("reproduce", "table7", "--scale", "paper", "--check") == 0
    assert "48 runs, about" in " ".join(capsys.readouterr().out.split())
    for words, said in (
        ((), "say which"),
        (("tabel7",), "did you mean table7"),
        (("table2_large",), "table2_large has no small scale"),
        (("table7", "--seeds", "[1,1]"), "seeds are repeated"),
        (("table7", "--data-dir", "nowhere"), "nowhere is not a folder"),
    ):
        assert run("reproduce", *words) != 0
        assert said in " ".join(capsys.readouterr().err.split())
