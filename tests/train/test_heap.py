"""Freed memory stays with the process, where nobody has said otherwise, until it is given back."""

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

GIVEN_BACK = """
import os, torch
from earlybert.train.heap import give_back, keep_freed
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
print(keep_freed())
blocks = [torch.ones(2**20) for _ in range(64)]  # of 4 MB, from the heap
above, blocks[0] = blocks[-1], blocks
del blocks  # a cycle, below a block that is still in use
before = resident()
give_back()
print(before - resident())
"""


def asked(**variables: str) -> tuple[bool, int]:
    """Whether memory is kept, and the pages that blocks of 64 MB, one after another, had anew."""
    kept, pages = said(ASK, **variables)
    return kept == "True", int(pages)


def said(program: str, **variables: str) -> list[str]:
    """What a fresh process prints, without a person's own words on memory but these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment, command = {**clean, **variables}, [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_blocks_that_were_freed_are_had_again() -> None:
    kept, pages = asked()
    if not kept:
        pytest.skip("the C library is not glibc")
    assert pages < 1000
    kept, pages = asked(MALLOC_ARENA_MAX="2")
    assert not kept  # somebody has said how memory is to be had


def test_what_was_kept_is_given_back_also_out_of_cycles_and_from_within_the_heap() -> None:
    kept, given = said(GIVEN_BACK)
    if kept != "True":
        pytest.skip("the C library is not glibc")
    assert int(given) > 56 * 2**22
