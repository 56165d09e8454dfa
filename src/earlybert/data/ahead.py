"""Batches made in a thread of their own while the device computes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")

WAIT = 0.1
"""Seconds after which a thread that waits looks whether it is still wanted."""


def ahead(items: Iterable[Item], depth: int = 4) -> Generator[Item, None, None]:
    """The same items in the same order, up to `depth` of them made before they are asked for.

    The thread ends when the items do, or when the iterator is closed or forgotten, which waits for it. An error in it
    is raised at the place where its item would have come.

    Args:
        items: Made in the thread. Nothing else may use them meanwhile.
        depth: Items held at most.
    """
    ready: Queue[Callable[[], Item]] = Queue(depth)
    over = Event()
    maker = Thread(target=_fill, args=(items, ready, over), daemon=True)
    maker.start()
    try:
        while True:
            try:
                yield ready.get()()
            except _Ended:
                return
    finally:
        over.set()
        maker.join()  # a thread still at work in native code when the interpreter goes aborts the process


class _Ended(Exception):
    """There are no more items."""


def _fill(items: Iterable[Item], ready: Queue[Callable[[], Item]], over: Event) -> None:
    try:
        for item in items:
            if not _put(ready, lambda item=item: item, over):
                return
        error: BaseException = _Ended()
    except BaseException as raised:
        error = raised
    _put(ready, lambda: _raise(error), over)


def _put(ready: Queue[Callable[[], Item]], entry: Callable[[], Item], over: Event) -> bool:
    """Whether the entry was taken before nobody wanted it any more."""
    while not over.is_set():
        try:
            ready.put(entry, timeout=WAIT)
        except Full:
            continue
        return True
    return False


def _raise(error: BaseException) -> Item:  # pyright: ignore[reportInvalidTypeVarUse]
    raise error
