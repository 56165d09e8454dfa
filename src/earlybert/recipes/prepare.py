"""Text files or a data set to a prepared corpus, with a bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..anatomy import Refused
from ..config.prepare import Preparation
from ..data import prepare as data
from ..data import sources
from ..tasks import demo
from .display import display, say
from .lock import locked

LEAST = 2
"""Held-out documents that sentence pairs need: the second half of some is from another."""


def prepare(
    config: Preparation,
    *,
    files: Sequence[str] = (),
    output: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str = "train",
    workers: int | None = None,
    resume: bool = False,
    offline: bool = False,
) -> None:
    """Prepare a corpus and say what is in it.

    Args:
        config: What decides its bytes, besides the text.
        files: Text files, read in this order.
        output: Folder for the corpus.
        dataset: Data set of the hub, instead of files.
        dataset_config: Its configuration.
        split: Which part of it.
        workers: Processes that tokenise; one a core when not given. They do not change the result.
        resume: Go on with an unfinished corpus.
        offline: Names are looked for in the hub's cache only.

    Raises:
        Refused: As `data.prepare.prepare`, or nothing to read or nowhere to write is given.
    """
    if output is None:
        raise Refused("where to? give --output with a folder for the corpus.")
    if bool(files) == (dataset is not None):
        raise Refused("give either text files or --dataset.")
    found: Sequence[sources.Source]
    if dataset is not None:
        found = [sources.HubData(dataset, config=dataset_config, split=split, column=config.text, offline=offline)]
    else:
        found = sources.files(files, column=config.text, wrong_bytes=config.wrong_bytes)
    if config.tokenizer == demo.MODEL:
        config = replace(config, tokenizer=str(demo.model_path()))
    with _alone(Path(output)), _bar(sum(source.size for source in found)) as observe:
        manifest = data.prepare(
            found,
            Path(output),
            config,
            workers=workers or _cores(),
            resume=resume,
            offline=offline,
            observe=observe,
            say=say,
        )
    _report(output, manifest["counts"], len(manifest["shards"]))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Around the work: no other process is at it, and a new folder that nothing was written to goes."""
    fresh = not folder.exists()
    with locked(folder):
        try:
            yield
        finally:
            if fresh:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()


@contextmanager
def _bar(size: int) -> Iterator[Callable[[data.Tally], None]]:
    """What moves a bar on over so many bytes; its first call shows it, so that what is refused has none."""
    with ExitStack() as shown:
        bar: list[tuple[Progress | None, Any]] = []

        def observe(tally: data.Tally) -> None:
            if not bar:
                bars = shown.enter_context(display.bars(*_columns(size)))
                bar.append((bars, bars and bars.add_task("preparing", total=size or None, documents=0)))
            bars, task = bar[0]
            if bars is not None:
                bars.update(task, completed=tally.consumed, documents=tally.read)

        yield observe


def _columns(size: int) -> tuple[ProgressColumn, ...]:
    columns = (TextColumn("{task.description:<14}"), BarColumn(), TextColumn("{task.fields[documents]:,} documents"))
    ends = (TaskProgressColumn(), TimeRemainingColumn()) if size else (TimeElapsedColumn(),)
    return (*columns, *ends)


def _report(output: str, counts: dict[str, dict[str, int]], shards: int) -> None:
    train, held_out = counts["train"], counts["validation"]
    say(
        f"{output}: {train['documents']:,} documents to train on, {train['sentences']:,} sentences, "
        f"{train['tokens']:,} tokens in {shards} shards; {held_out['documents']:,} documents held out."
    )
    if held_out["documents"] < LEAST:
        say(
            f"note: {held_out['documents']} documents are held out, and pretrain validates on {LEAST} at least; a "
            "larger --held-out, or more documents, would do."
        )
    reasons = {"duplicates": "repeated others", "wrong_bytes": "held bytes that are not UTF-8", "empty": "were empty"}
    for name, reason in reasons.items():
        if counts[name]:
            say(f"{counts[name]:,} of {counts['read']:,} documents {reason}.")
    if cut := counts["cut"]:
        say(
            f"note: {cut:,} {'document was' if cut == 1 else 'documents were'} cut at "
            f"{sources.LONGEST_DOCUMENT / 1e6:.0f} million characters: is there a blank line between documents? Where "
            "every line is one, put a blank line between them, or write JSON lines."
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
