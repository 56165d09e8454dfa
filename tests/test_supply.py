"""What is shipped: no network and no torch at import, bounds that are exact versions, licences that are permissive."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import earlybert

ROOT = Path(__file__).parents[1]

NO_NETWORK = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError(f"the network was asked for: {args}")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
"""


def python(program: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    ).stdout


@pytest.mark.parametrize("words", ["--help", "--version", "ticket", "draw --help"])
def test_import_and_help_load_neither_torch_nor_the_network(words: str) -> None:
    python(
        NO_NETWORK
        + f"import earlybert; from earlybert.cli import main; main({words.replace('ticket', 'ticket --help').split()!r})\n"
        + "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'matplotlib', 'rich'} & set(sys.modules)\n"
        + "assert not heavy, heavy"
    )


@pytest.mark.slow
def test_no_public_name_asks_the_network() -> None:
    out = python(NO_NETWORK + "import earlybert\nfor name in earlybert.__all__: print(getattr(earlybert, name))")
    assert len(out.splitlines()) == len(earlybert.__all__)


def test_every_lower_bound_is_a_version() -> None:
    out = subprocess.run(
        [sys.executable, ROOT / "supply" / "lowest.py", "torch"], check=True, capture_output=True, text=True
    ).stdout
    names = [line.split("==")[0] for line in out.splitlines()]
    assert "transformers" in names
    assert "torch" not in names


def test_licences_are_permissive_and_listed() -> None:
    try:
        assert version("earlybert")
    except ModuleNotFoundError:
        pytest.skip("earlybert is not installed, so nothing says what it needs")
    found = subprocess.run([sys.executable, ROOT / "supply" / "licences.py"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    listed = (ROOT / "docs" / "licences.md").read_text()
    for name in ("torch", "transformers", "numpy", "safetensors"):
        assert f"| {name} |" in found.stdout
        assert f"| {name} |" in listed


def test_copyleft_and_silence_are_not_permissive() -> None:
    spec = importlib.util.spec_from_file_location("licences", ROOT / "supply" / "licences.py")
    assert spec is not None
    assert spec.loader is not None
    licences = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(licences)
    for said in ("MIT", "BSD-3-Clause AND 0BSD", "Apache Software License", "MPL-2.0 AND MIT"):
        assert licences.permissive(said), said
    for said in ("", "GPL-3.0-only", "BSD AND LGPL-2.1", "GNU Lesser General Public License", "LIMITED", "Other"):
        assert not licences.permissive(said), said


def test_the_changelog_has_this_version() -> None:
    assert f"\n## {earlybert.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_type_information_is_shipped() -> None:
    assert (Path(earlybert.__file__).parent / "py.typed").exists()


PYTHON = """#!/bin/sh
# Stands in for an interpreter: `-m venv FOLDER` makes FOLDER/bin/python, which is this file, and `-m pip` takes a second.
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo venv >>"$3/calls" ;;
    "-m pip") sleep 1; echo pip >>"$(dirname "$0")/../calls" ;;
esac
"""


@pytest.fixture
def environment(tmp_path: Path) -> list[str]:
    """The command that sets `tmp_path / "venv"` up with an interpreter that installs nothing."""
    interpreter = tmp_path / "python"
    interpreter.write_text(PYTHON)
    interpreter.chmod(0o755)
    return ["sh", str(ROOT / "supply" / "environment.sh"), str(tmp_path / "venv"), str(interpreter)]


def set_up(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_an_environment_that_was_broken_off_is_made_anew(environment: list[str], tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    job = subprocess.Popen(environment)
    while not (venv / "calls").exists():
        assert job.poll() is None
    job.kill()
    job.wait()
    (venv / "half").touch()
    assert "begins anew" in set_up(environment)
    assert not (venv / "half").exists()
    assert (venv / ".ready").exists()
    assert not (venv / ".begun").exists()


def test_two_set_ups_of_an_environment_at_once_are_one(environment: list[str], tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    first = subprocess.Popen(environment)
    while not (venv / "calls").exists():
        assert first.poll() is None
    assert "waiting for it" in set_up(environment)
    assert first.wait() == 0
    assert (venv / "calls").read_text().split() == ["venv", "pip"]


def test_an_environment_of_ones_own_is_brought_up_to_date(environment: list[str], tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "own").touch()
    assert set_up(environment) == ""
    assert (venv / "own").exists()
    assert (venv / ".ready").exists()
