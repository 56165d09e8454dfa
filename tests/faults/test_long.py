"""The scripts that are run for long by hand, for a short while."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import warm

from .fuzz import outcome
from .mutate import readers, spoiled

ROOT = Path(__file__).parents[2]
KINDS = (
    "ticket",
    "scores",
    "history",
    "predictions",
    "checkpoint",
    "manifest",
    "shard",
    "steps",
    "config",
    "rows",
    "table",
)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return readers(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_spoiled_files_are_read_or_refused(kind: str, seed: int, every: dict[str, Any], tmp_path: Path) -> None:
    draw, reader = random.Random(seed), every[kind]
    content = spoiled(draw, draw.choice(reader.whole))
    result, said = outcome(reader, tmp_path / reader.name, content)
    assert result != "bug", said


def test_whole_files_are_read(every: dict[str, Any], tmp_path: Path) -> None:
    assert tuple(every) == KINDS
    for reader in every.values():
        for content in reader.whole:
            assert outcome(reader, tmp_path / reader.name, content) == ("accepted", "")


def test_every_row_of_the_docs_is_a_test() -> None:
    rows = [line for line in (ROOT / "docs" / "reliability.md").read_text().splitlines() if line.startswith("| ")]
    rows = [line for line in rows if not line.startswith(("| tried", "| ---"))]
    assert len(rows) > 40
    for row in rows:
        found = re.findall(r"\[test_\w+: ([^\]]+)\]\(\.\./(tests/[\w/]+\.py)\)", row)
        assert found, row
        for name, file in found:
            assert f"def test_{name.replace(' ', '_')}(" in (ROOT / file).read_text(), name


def script(name: str, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"tests.faults.{name}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return last(done.stdout)


def forked(name: str, *words: str) -> dict[str, Any]:
    """The same without an interpreter of its own."""
    return last(warm.run(f"tests.faults.{name}", *words).stdout)


def last(said: str) -> dict[str, Any]:
    return json.loads(said[said.index("{\n") :])


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "times"), [("KILL", 5), ("TERM", 2)])
def test_runs_stopped_at_random_moments_go_on_bit_equal(sent: str, times: int) -> None:
    summary = forked("kills", "--kills", str(times), "--signal", sent, "--seed", "3")
    assert summary["kills"] >= times
    assert summary["slowest_exit_seconds"] < 10


@pytest.mark.slow
def test_repeated_runs_leave_nothing_behind() -> None:
    summary = forked("soak", "--runs", "3")
    assert summary["runs"] == 3
    assert summary["files_left_outside"] == 0


@pytest.mark.slow
def test_the_fuzzer_ends_with_a_summary() -> None:
    summary = script("fuzz", "--inputs", "500", "--processes", "1", "--seed", "7")
    assert summary["accepted"] + summary["refused"] == 500
