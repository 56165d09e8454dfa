"""Pre-training batches: every example once an epoch over all ranks, masked anew, any step reached directly.

What a step holds follows from its number. In each epoch the shards are put in a new order, and the examples of
`WINDOW` shards at a time are mixed: memory holds their plans (about 9 MB for each shard of 16 M tokens), whatever the
size of the corpus. The sentence pairs are planned in `VARIANTS` ways, one epoch after the other; masks, partners of
random pairs, and the order are new in every epoch. Global batches follow each other without regard to the ends of
epochs, so that all are of one size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..anatomy import Refused
from ..tasks.batches import IGNORED
from . import plan
from .corpus import Corpus
from .masking import choose, hide, most
from .noise import bits
from .rows import AROUND_PAIR, AROUND_ROW, DRAWS, Row, Writer
from .shards import Split, again

WINDOW = 16
"""Shards whose examples are mixed."""
VARIANTS = 10
"""Ways in which pairs are planned: BERT's script makes ten copies of the data with different draws."""
ORDER, PLAN, PAIR, CHOICE, HIDE = range(5)
"""What a random draw is for."""

Batch = dict[str, Tensor]
"""`input_ids`, `attention_mask`, `token_type_ids` int64 `[rows, length]`; `masked_positions`, `masked_labels` int64
`[predictions]`: places counted through all rows, and the ids that belong there, -100 for those that fill up;
`next_sentence_label` int64 `[rows]`, 1 for a random pair, where there are pairs."""
Place = tuple[int, int, int]
"""Epoch, shard, and number of the example in its plan."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What an example is."""

    length: int = 128
    """Tokens of a row, special ones included."""
    pairs: bool = True
    """Sentence pairs for next-sentence prediction; else rows packed with full sentences."""
    across: bool = True
    """Whether packed rows go on into the next document."""
    whole_words: bool = False
    """Mask all tokens of a word or none."""


class Stream:
    """An endless stream of optimizer steps' worth of micro-batches.

    Args:
        corpus: Where from.
        layout: What an example is.
        rows: Examples of a micro-batch.
        accumulate: Micro-batches per optimizer step and rank.
        rank: Of this process.
        world: Processes. Two with one micro-batch a step see what one with two sees.
        seed: Decides everything random.
        split: Which documents.

    Attributes:
        predictions: Length of `masked_positions`, the same in every batch.

    Raises:
        Refused: The length holds no pair, or the split holds too few documents.
    """

    def __init__(
        self,
        corpus: Corpus,
        layout: Layout,
        *,
        rows: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        split: Split = "train",
    ) -> None:
        self.corpus, self.layout, self.rows, self.accumulate = corpus, layout, rows, accumulate
        self.rank, self.world, self.seed = rank, world, seed
        self.predictions = rows * most(layout.length)
        self._shards = [shard for shard in corpus.shards(split) if len(shard.tokens)]
        self._writer = Writer(self._shards, corpus.words, layout.length)
        self._words = corpus.words
        self._variants = VARIANTS if layout.pairs else 1
        self._plan = lru_cache(maxsize=2 * WINDOW)(self._plan_shard)
        self._window = lru_cache(maxsize=2)(self._mix_window)
        self._counts: dict[int, list[int]] = {}
        self._refuse_unfit(split)

    def _refuse_unfit(self, split: Split) -> None:
        least = AROUND_PAIR + 2 if self.layout.pairs else AROUND_ROW + 1
        if self.layout.length < least:
            raise Refused(f"a row of {self.layout.length} tokens is too short; it needs at least {least}.")
        if self._writer.documents < (2 if self.layout.pairs else 1):
            more = f"; {again(self.corpus.folder)} with a larger --held-out" if split == "validation" else ""
            raise Refused(
                f"{self.corpus.folder} has {self._writer.documents} documents for {split}; "
                f"{'pairs need two' if self.layout.pairs else 'it needs one'} (a blank line, or a line of JSON, begins "
                f"a new document{more})."
            )
        if self.layout.whole_words and self._words.begins is None:
            raise Refused("this tokenizer does not mark where words begin; whole words cannot be masked.")

    def examples(self, epoch: int) -> int:
        """Examples of an epoch, over all ranks."""
        return sum(self._counts_of(epoch))

    def starting_at(self, step: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of optimizer step `step` (0 is the first), the next, and so on."""
        while True:
            yield self.step(step)
            step += 1

    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches of one optimizer step."""
        first = [(step * self.accumulate + micro) * self.world + self.rank for micro in range(self.accumulate)]
        return [self.batch(self.places(number * self.rows, self.rows)) for number in first]

    def once(self) -> Iterator[Batch]:
        """Every example of epoch 0 in the order of the corpus, the last batch short: for evaluation."""
        places = [(0, shard, one) for shard, count in enumerate(self._counts_of(0)) for one in range(count)]
        for begin in range(0, len(places), self.rows):
            yield self.batch(places[begin : begin + self.rows])

    def places(self, position: int, count: int) -> list[Place]:
        """Which examples stand at these places of the endless order."""
        epoch = 0
        while position >= (size := self.examples(epoch)):
            position, epoch = position - size, epoch + 1
        found: list[Place] = []
        while len(found) < count:
            number, begin = self._window_at(epoch, position)
            numbers, examples = self._window(epoch, number)
            part = slice(position - begin, position - begin + count - len(found))
            found += [(epoch, *one) for one in zip(numbers[part].tolist(), examples[part].tolist(), strict=True)]
            position = begin + min(part.stop, len(numbers))
            if position == self.examples(epoch):
                position, epoch = 0, epoch + 1
        return found

    def batch(self, places: list[Place]) -> Batch:
        """These examples, masked."""
        where = [np.array(part)[:, None] for part in zip(*places, strict=True)]
        drawn = bits(self.seed, PAIR, *where, np.arange(DRAWS)).tolist()
        rows = [self._row(place, draws) for place, draws in zip(places, drawn, strict=True)]
        sizes = np.array([len(row.ids) for row in rows])
        ids = np.full((len(rows), self.layout.length), self._words.pad, dtype=np.int64)
        columns = np.arange(self.layout.length)
        inside = columns < sizes[:, None]
        ids[inside] = np.concatenate([row.ids for row in rows])
        special = (ids == self._words.cls) | (ids == self._words.sep)
        keys = bits(self.seed, CHOICE, *where, columns)
        chosen = choose(ids, inside & ~special, sizes, self._words, keys, whole=self.layout.whole_words)
        seen, positions, labels = hide(ids, chosen, self._words, self.seed, HIDE, *where, columns)
        batch = {
            "input_ids": seen,
            "attention_mask": inside.astype(np.int64),
            "token_type_ids": (inside & (columns >= (sizes - [row.second for row in rows])[:, None])).astype(np.int64),
            "masked_positions": self._filled(positions, 0),
            "masked_labels": self._filled(labels, IGNORED),
        }
        if self.layout.pairs:
            batch["next_sentence_label"] = np.array([row.random for row in rows], dtype=np.int64)
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def row(self, place: Place) -> Row:
        """One example before masking."""
        return self._row(place, bits(self.seed, PAIR, *place, np.arange(DRAWS)).tolist())

    def _row(self, place: Place, draws: list[int]) -> Row:
        epoch, shard, example = place
        planned = self._plan(epoch % self._variants, shard)
        if self.layout.pairs:
            return self._writer.pair(shard, planned, example, draws)
        return self._writer.packed(shard, planned, example)

    def _filled(self, values: NDArray[np.int64], fill: int) -> NDArray[np.int64]:
        return np.pad(values, (0, self.predictions - len(values)), constant_values=fill)

    def _plan_shard(self, variant: int, number: int) -> plan.Plan:
        shard, layout = self._shards[number], self.layout
        if layout.pairs:
            return plan.pairs(shard, layout.length - AROUND_PAIR, self.seed, PLAN, variant, number)
        return plan.packed(shard, layout.length - AROUND_ROW, across=layout.across)

    def _counts_of(self, epoch: int) -> list[int]:
        """Examples of each shard; planned once for each variant."""
        variant = epoch % self._variants
        if variant not in self._counts:
            self._counts[variant] = [len(self._plan(variant, number)) for number in range(len(self._shards))]
        return self._counts[variant]

    def _shuffled(self, epoch: int) -> list[int]:
        return np.random.default_rng([self.seed, ORDER, epoch]).permutation(len(self._shards)).tolist()

    def _window_at(self, epoch: int, position: int) -> tuple[int, int]:
        """The window that holds a position of an epoch, and the position of its first example."""
        counts, order = self._counts_of(epoch), self._shuffled(epoch)
        begin = 0
        for number in range(0, len(order), WINDOW):
            size = sum(counts[shard] for shard in order[number : number + WINDOW])
            if position < begin + size:
                return number // WINDOW, begin
            begin += size
        raise AssertionError(position)

    def _mix_window(self, epoch: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shard and number of every example of a window, in random order."""
        members = self._shuffled(epoch)[number * WINDOW : (number + 1) * WINDOW]
        counts = self._counts_of(epoch)
        shards = np.repeat(members, [counts[shard] for shard in members])
        examples = np.concatenate([np.arange(counts[shard]) for shard in members])
        order = np.random.default_rng([self.seed, ORDER, epoch, number]).permutation(len(shards))
        return shards[order], examples[order]
