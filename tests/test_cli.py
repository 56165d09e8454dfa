"""Bad input gets one sentence and exit code 2, before any compute and with nothing written."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from earlybert.cli import main
from tests.conftest import tiny_model


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A person's own files, good and bad."""
    folder = tmp_path / "files"
    folder.mkdir()

    def table(name: str, rows: list[tuple[str, object]], header: str = "text,label") -> None:
        (folder / name).write_text("\n".join([header, *(f"{text},{label}" for text, label in rows)]) + "\n")

    table("good.csv", [("a good film" if i % 2 else "a bad film", i % 2) for i in range(20)])
    table("other_labels.csv", [("a film", 7)])
    table("one_class.csv", [("a good film", "yes")] * 20)
    table("empty.csv", [])
    table("hole.csv", [("a film", 1), ("", 0)])
    table("wide.csv", [("a good film " * 30, i % 2) for i in range(20)])
    table("many.csv", [("a film", i) for i in range(60)])
    table("half_numbers.csv", [("a film", 0.5), ("a film", "x")])
    table("one_bad_number.csv", [("a good film", i / 10) for i in range(20)] + [("a film", "n/a")])
    rows = [json.dumps({"text": "a film", "label": 10**400 if i == 4 else i / 10}) for i in range(20)]
    (folder / "beyond.jsonl").write_text("\n".join(rows))
    table("surplus.csv", [("a good film", 1), ("a good, film", 0)])
    table("twice.csv", [("a good film", "1,1")], header="text,label,label")
    damaged = bytearray(gzip.compress("".join(f"a good film {i},{i % 2}\n" for i in range(500)).encode()))
    damaged[len(damaged) // 2] ^= 0xFF
    (folder / "damaged.csv.gz").write_bytes(bytes(damaged))
    bare = folder / "bare"
    tiny_model("bert", head=False, vocab_size=120).save_pretrained(bare)
    three = folder / "three"
    tiny_model("bert", num_labels=3).save_pretrained(three)
    (folder / "blank.csv").write_text("")
    (folder / "broken.jsonl").write_text('{"text": "a", "label": 1}\n{"text": \n')
    (folder / "multi.jsonl").write_text('{"text": "a", "label": [0, 1]}\n{"text": "b", "label": [1]}\n')
    (folder / "latin.csv").write_bytes("text,label\ncaf\xe9,1\n".encode("latin-1"))
    (folder / "data.parquet").write_bytes(b"PAR1")
    with gzip.open(folder / "cut.jsonl.gz", "wb") as file:
        file.write(b'{"text": "a", "label": 1}\n' * 1000)
    (folder / "cut.jsonl.gz").write_bytes((folder / "cut.jsonl.gz").read_bytes()[:40])
    sst2 = folder / "sst2"
    sst2.mkdir()
    for split in ("train", "validation"):
        with gzip.open(sst2 / f"{split}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({"sentence": "a good film", "label": label}) + "\n" for label in (0, 1, 2))
    (folder / "rte").symlink_to(sst2)
    gpt = folder / "gpt"
    gpt.mkdir()
    (gpt / "config.json").write_text('{"model_type": "bloom", "architectures": ["BloomModel"]}')
    (folder / "notes.txt").write_text("mine")
    (folder / "long.yaml").write_text("text,label\n" + "a good film,1\n" * 900)
    (folder / "broken.yaml").write_text("lr: [1,\n")
    (folder / "odd.yaml").write_text("lr: !!int x\n")
    (folder / "value.yaml").write_text(f"lr: {'x' * 5000}\n")
    (folder / "name.yaml").write_text("task: sst2\nhedas: 3\n")
    (folder / "choice.yaml").write_text("recipe: fastest\n")
    (folder / "list.yaml").write_text("task: [a, b]\n")
    return folder


OWN = "--train-file {f}/good.csv"
CASES = {
    "no data": ("", "no data"),
    "two kinds of data": (f"{OWN} --task sst2", "not both"),
    "unknown task": ("--task sst3", "unknown task 'sst3'; did you mean sst2"),
    "nothing in the cache": ("--task rte --offline", "not in the cache, and --offline forbids the hub"),
    "offline model": (f"{OWN} --offline --model nobody/nothing", "--offline forbids the hub"),
    "negative stride": ("--task squad --data-dir {f} --stride -1", "stride must be at least 0"),
    "no such column in a task": (
        "--task rte --data-dir {f}",
        "no column 'sentence1'; its columns are 'sentence', 'label'",
    ),
    "missing data folder": ("--task sst2 --data-dir {f}/none", "cannot be read"),
    "label out of range": ("--task sst2 --data-dir {f}", "row 3 of the train data has label 2; labels are 0 to 1"),
    "missing file": ("--train-file {f}/none.csv", "none.csv cannot be read"),
    "empty file": ("--train-file {f}/empty.csv", "empty.csv is empty"),
    "blank file": ("--train-file {f}/blank.csv", "blank.csv is empty"),
    "no such label column": (f"{OWN} --label stars", "no column 'stars'; its columns are 'text', 'label'"),
    "no such text column": (f"{OWN} --text body", "no column 'body'"),
    "empty cell": ("--train-file {f}/hole.csv", "row 2: column 'text' is empty"),
    "one class": ("--train-file {f}/one_class.csv", "the same label"),
    "validation label unknown": (
        f"{OWN} --validation-file {{f}}/other_labels.csv",
        "is not one of the training labels",
    ),
    "too many classes": ("--train-file {f}/many.csv", "holds 60 different labels"),
    "no number": ("--train-file {f}/half_numbers.csv --problem regression", "'x' is not a number"),
    "multi-label": ("--train-file {f}/multi.jsonl", "multi-label tasks are not supported"),
    "one bad number": ("--train-file {f}/one_bad_number.csv", "holds numbers, but not in row 21 ('n/a')"),
    "number beyond all": ("--train-file {f}/beyond.jsonl", "but not in row 5 (a number beyond 1e300)"),
    "surplus cells": ("--train-file {f}/surplus.csv", "row 2 has more cells than the header"),
    "column twice": ("--train-file {f}/twice.csv", "names a column twice"),
    "damaged gzip": ("--train-file {f}/damaged.csv.gz", "damaged"),
    "no tokenizer": (f"{OWN} --model {{f}}/bare", "token"),
    "searching backwards": (f"{OWN} --gate-lr -0.1", "gate_lr must be at least 0"),
    "broken json": ("--train-file {f}/broken.jsonl", "line 2, is not a JSON object"),
    "not utf-8": ("--train-file {f}/latin.csv", "not UTF-8"),
    "torn gzip": ("--train-file {f}/cut.jsonl.gz", "is broken after line"),
    "unknown format": ("--train-file {f}/data.parquet", "must end in .csv, .tsv or .jsonl"),
    "all rows too long": ("--train-file {f}/wide.csv --max-length 8", "all 18 training rows are longer than 8 tokens"),
    "longer than the model": (f"{OWN} --max-length 4000", "more than the 64 tokens"),
    "other family": (f"{OWN} --model {{f}}/gpt", "'bloom' are not supported; supported are bert"),
    "model folder without config": (f"{OWN} --model {{f}}/sst2", "no usable config.json"),
    "ratio of one": (f"{OWN} --heads 1.0", "heads to remove must be"),
    "negative ratio": (f"{OWN} --neurons -0.1", "neurons"),
    "empties a layer": (f"{OWN} --heads 4", "cannot remove 4 of 4 heads"),
    "budget that cannot be met": (f"{OWN} --neurons 0.99", "every layer keeps between"),
    "unaligned model": (f"{OWN} --align 100", "larger than the 64"),
    "bad number": (f"{OWN} --lr fast", "--lr"),
    "bad range": (f"{OWN} --lr 0", "lr must be above 0"),
    "no such flag": (f"{OWN} --learning-rate 1", "--learning-rate"),
    "no such config": ("--config {f}/none.yaml", "none.yaml"),
    "a table as config": ("--config {f}/long.yaml", "--config: the file is no YAML of settings"),
    "empty config": ("--config {f}/blank.csv", "--config: the file is no YAML of settings"),
    "binary config": ("--config {f}/damaged.csv.gz", "--config: the file is no YAML of settings"),
    "broken config": ("--config {f}/broken.yaml", "is no YAML of settings, which has lines of NAME: VALUE (while"),
    "config of odd numbers": ("--config {f}/odd.yaml", "--config: the file is no YAML of settings"),
    "long value in a config": ("--config {f}/value.yaml", "/value.yaml: lr must be a number, got 'xxx"),
    "long flag": ("--lr " + "x" * 5000, "--lr must be a number, got 'xxx"),
    "no number, no share": (f"{OWN} --heads one", "--heads must be a whole number or a fraction, got 'one'."),
    "a share that is no number": (f"{OWN} --neurons nan", "--neurons must be a whole number or a fraction, got 'nan'."),
    "no whole number": (f"{OWN} --batch-size abc", "--batch-size must be a whole number, got 'abc'."),
    "neither a number nor nothing": (f"{OWN} --joint half", "--joint must be a number, got 'half'."),
    "without end": (f"{OWN} --lr inf", "--lr must be a number, got 'inf'."),
    "no choice": (f"{OWN} --recipe fastest", "--recipe must be default, paper or best, got 'fastest'."),
    "no choice in a config": ("--config {f}/choice.yaml", "/choice.yaml: recipe must be default, paper or best, got"),
    "a flag beside its config": ("--config {f}/choice.yaml --recipe best", "/choice.yaml: recipe must be default"),
    "neither true nor false": (f"{OWN} --truncate maybe", "--truncate must be true or false, got 'maybe'."),
    "a list for a text": ("--config {f}/list.yaml", "/list.yaml: task must be text, got \"['a', 'b']\"."),
    "a name in a config": ("--config {f}/name.yaml", "/name.yaml: there is no setting 'hedas'; did you mean heads?"),
    "a flag's name": (f"{OWN} --batch-sise 3", "there is no setting --batch-sise; did you mean --batch-size?"),
    "a name like none": (f"{OWN} --xyz 3", "there is no setting --xyz; earlybert finetune --help lists them."),
    "a flag without value": (f"{OWN} --lr", "--lr needs a value."),
    "resume nothing": (f"{OWN} --resume", "not a run folder"),
    "keep without room": (f"{OWN} --weights keep --epochs 1", "the search is part of the"),
    "compare dense": (f"{OWN} --compare --method dense", "--compare trains the dense model beside a ticket"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(
    case: str, files: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, sentence = CASES[case]
    out = tmp_path / "out"
    given = words.format(f=files).split()
    if "--model" not in given:
        given += ["--model", str(model_folder)]
    for flag, value in (("--align", "8"), ("--max-length", "16")):
        if flag not in given:
            given += [flag, value]
    assert main(["finetune", *given, "--output", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("earlybert: ")
    assert err.count("\n") == 1, err
    assert len(err) <= 1600
    assert sentence in err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["export", "--to", "foo"], "--to must be onnx, torch, expanded or model, got 'foo'."),
        (["compare", "--seeds", "a"], "--seeds must be a list of whole numbers such as [1, 2], got 'a'."),
        (["compare", "--tasks", "[1]"], "--tasks must be names with settings or a list such as [a, b], got '[1]'."),
        (["draw", "run", "--task", "rte"], "there is no setting --task; earlybert draw --help lists them."),
    ],
)
def test_a_wrong_option_of_a_command(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"earlybert: {sentence}\n"


def test_an_existing_folder_is_not_written_over(
    files: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", "--train-file", f"{files}/good.csv", "--model", str(model_folder), "--output", str(files)]
    before = {file: file.stat().st_mtime_ns for file in files.rglob("*")}
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in files.rglob("*")} == before


def test_commands_on_folders_that_are_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("draw", "train", "evaluate"):
        assert main([command, str(tmp_path)]) == 2
        assert "is not a run folder" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("task: sst2\nbogus: 1\n")
    assert main(["draw", str(tmp_path)]) == 2
    assert "bogus" in capsys.readouterr().err
    assert main(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err


def test_flags_win_over_yaml_wherever_they_stand(tmp_path: Path, model_folder: Path, data_dir: Path) -> None:
    import yaml

    (tmp_path / "c.yaml").write_text("task: sst2\nheads: 3\nseed: 5\nalign: 8\n")
    common = ["--data-dir", str(data_dir), "--model", str(model_folder), "--search-steps", "1", "--max-length", "16"]
    for place, words in enumerate((["--heads", "2", "--config"], ["--config"])):
        after = [] if place == 0 else ["--heads=2"]
        out = tmp_path / f"out{place}"
        assert main(["search", *common, *words, str(tmp_path / "c.yaml"), *after, "--output", str(out)]) == 0
        saved = yaml.safe_load((out / "config.yaml").read_text())
        assert (saved["heads"], saved["seed"]) == (2, 5)


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys; from earlybert.cli import main; main(['finetune', '--help']); import earlybert; assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert "--data-dir" in shown
    assert "lambda of Eq. 4 for heads" in shown  # the docstring is the help


def test_a_bare_flag_is_true(files: Path, model_folder: Path, tmp_path: Path) -> None:
    """As the refusal of rows that are all too long says: accept it with --truncate."""
    words = ["--train-file", f"{files}/wide.csv", "--model", str(model_folder), "--max-length", "8", "--align", "8"]
    for place, flag in enumerate((["--truncate"], ["--truncate", "true"], ["--truncate=false"])):
        settings = [*flag, "--search-steps", "1", "--output", str(tmp_path / f"out{place}")]
        assert main(["search", *words, *settings]) == (2 if place == 2 else 0)


def test_own_files_regression_and_pairs(files: Path, model_folder: Path, tmp_path: Path) -> None:
    rows = [
        "first\tsecond\tscore",
        *(f"a {'good' if i % 2 else 'bad'} film\tthe story\t{i % 2 + 0.25}" for i in range(24)),
    ]
    (files / "pairs.tsv").write_text("\n".join(rows) + "\n")
    words = ["--train-file", f"{files}/pairs.tsv", "--text", "first", "--text-pair", "second", "--label", "score"]
    settings = [
        "--model",
        str(model_folder),
        "--search-steps",
        "2",
        "--align",
        "8",
        "--batch-size",
        "4",
        "--max-length",
        "16",
    ]
    assert main(["finetune", *words, *settings, "--output", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["score"]) == {"pearson", "spearman"}
    assert metrics["validation_rows"] == 2


def test_a_head_of_another_size_is_replaced(files: Path, model_folder: Path, tmp_path: Path, tiny_tokenizer) -> None:
    tiny_tokenizer.save_pretrained(files / "three")
    words = ["--train-file", f"{files}/good.csv", "--model", f"{files}/three", "--max-length", "16", "--align", "8"]
    assert main(["finetune", *words, "--method", "dense", "--output", str(tmp_path / "out")]) == 0
    assert len(json.loads((tmp_path / "out" / "model" / "config.json").read_text())["id2label"]) == 2


def test_three_classes_of_which_validation_shows_two(files: Path, model_folder: Path, tmp_path: Path) -> None:
    rows = [f"a {'good' if i % 3 else 'bad'} film,{i % 3}" for i in range(30)]
    (files / "train3.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (files / "held3.csv").write_text("text,label\na good film,2\na bad film,0\n")
    words = ["--train-file", f"{files}/train3.csv", "--validation-file", f"{files}/held3.csv", "--max-length", "16"]
    settings = ["--model", str(model_folder), "--method", "dense", "--dense-steps", "2"]
    assert main(["finetune", *words, *settings, "--output", str(tmp_path / "out")]) == 0
    score = json.loads((tmp_path / "out" / "metrics.json").read_text())["score"]
    assert set(score) == {"accuracy", "macro_f1", "matthews"}


def test_prepare_says_what_is_in_the_corpus(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(f"A good film {'very ' * (i % 39)}great. The story was dark." for i in range(40)) + "\n"
    )
    arguments = [
        "prepare",
        str(text),
        "--output",
        str(tmp_path / "c"),
        "--tokenizer",
        str(model_folder),
        "--held-out=0",
    ]
    assert main([*arguments, "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "39 documents to train on, 78 sentences" in out
    assert "1 of 40 documents repeated others." in out
    assert json.loads((tmp_path / "c" / "manifest.json").read_text())["counts"]["duplicates"] == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["prepare"], "give --output"),
        (["prepare", "--output", "c"], "either text files or --dataset"),
        (["prepare", "good.csv", "--dataset", "wiki", "--output", "c"], "either text files or --dataset"),
        (["prepare", "good.csv", "--output", "c", "--held-out", "0.7"], "held_out must be between 0 and 0.5"),
        (["prepare", "none.txt", "--output", "c"], "none.txt is not there"),
        (["prepare", "blank.csv", "--output", "c"], "blank.csv is empty"),
        (["prepare", "good.csv", "--output", "c", "--tokenizer", "bare"], "unknown to the tokenizer"),
        (["prepare", "good.csv", "--output", "c", "--vocabulary", "64000", "--wrong-bytes", "drop"], "wrong-bytes"),
    ],
)
def test_prepare_refuses_bad_input(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(files)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert not (files / "c" / "manifest.json").exists()
