"""Freed memory stays with the process, where nobody has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASK = """
import resource, torch
from earlybert.train.heap import keep_freed
print(keep_freed())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(2**24)  # 64 MB: 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def asked(**variables: str) -> tuple[bool, int]:
    """Whether memory is kept, and the pages that blocks of 64 MB, one after another, had anew."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment = {**clean, **variables}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    kept, pages = done.stdout.split()
    return kept == "True", int(pages)


def test_blocks_that_were_freed_are_had_again() -> None:
    kept, pages = asked()
    if not kept:
        pytest.skip("the C library is not glibc")
    assert pages < 1000
    kept, pages = asked(MALLOC_ARENA_MAX="2")
    assert not kept  # somebody has said how memory is to be had
