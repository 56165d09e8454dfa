"""Batches made ahead: the same, in order, and nothing left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from earlybert.data.ahead import ahead


def running() -> int:
    return threading.active_count()


def settle(count: int) -> bool:
    """Whether there are soon no more threads than this."""
    end = time.monotonic() + 5
    while running() > count and time.monotonic() < end:
        time.sleep(0.02)
    return running() <= count


def test_items_come_in_order_and_the_thread_ends() -> None:
    before = running()
    assert list(ahead(range(100), depth=3)) == list(range(100))
    assert settle(before)


def test_no_more_than_depth_are_made_ahead_and_closing_ends_the_thread() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    before = running()
    items = ahead(endless(), depth=3)
    assert [next(items), next(items)] == [0, 1]
    time.sleep(0.2)
    assert 4 <= len(made) <= 2 + 3 + 1  # taken, waiting, and one in hand
    items.close()  # type: ignore[attr-defined]
    assert settle(before)


def test_closing_waits_for_an_item_that_is_being_made() -> None:
    made: list[int] = []

    def slow() -> Iterator[int]:
        while True:
            time.sleep(0.3)
            made.append(1)
            yield 1

    items = ahead(slow(), depth=1)
    next(items)
    before = len(made)
    items.close()  # type: ignore[attr-defined]
    after = len(made)
    time.sleep(0.5)
    assert len(made) == after
    assert after <= before + 2


def test_an_error_comes_where_its_item_would() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the shard is gone")

    items = ahead(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="the shard is gone"):
        next(items)
