"""Rows, masks and their order: read back, held against binomial bounds, counted over whole epochs."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import earlybert as eb
from earlybert.data import noise, plan
from earlybert.data.corpus import Corpus
from earlybert.data.masking import choose, most
from earlybert.data.rows import DRAWS, Writer
from earlybert.data.seen import digest
from earlybert.data.shards import Shard
from earlybert.data.stream import Layout, Stream
from tests.data.test_plan import bound, shard_of

PAIRS, PACKED = Layout(length=48), Layout(length=48, pairs=False)
IGNORED = -100


def stream(corpus: Corpus, layout: Layout = PAIRS, **settings: object) -> Stream:
    return Stream(corpus, layout, **{"rows": 8, "seed": 3, **settings})  # type: ignore[arg-type]


def original(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The ids before masking."""
    ids = batch["input_ids"].clone().reshape(-1)
    known = batch["masked_labels"] != IGNORED
    ids[batch["masked_positions"][known]] = batch["masked_labels"][known]
    return ids.reshape(batch["input_ids"].shape)


def equal(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in zip(a, b, strict=True)
    )


# -- rows -------------------------------------------------------------------------------------------------------


def test_unmasked_rows_decode_to_the_text(corpus: Corpus, text_file: Path) -> None:
    """Every row is text of the file, and all rows of an epoch together are all text that is not held out."""
    documents = text_file.read_text("utf-8").split("\n\n")
    kept = ["".join(d.lower().split()) for d in documents if digest(d.strip())[0] >= 0.1 * 2**64]
    everything = " ".join(kept)
    total = 0
    for batch in stream(corpus, Layout(length=48, pairs=False, across=False)).once():
        for ids, size in zip(original(batch), batch["attention_mask"].sum(1).tolist(), strict=True):
            row = ids[:size].tolist()
            assert (row[0], row[-1]) == (corpus.words.cls, corpus.words.sep)
            text = corpus.tokenizer.decode(row, skip_special_tokens=True)
            text = "".join(text.replace("##", "").split())  # a long sentence may be cut within a word
            assert text in everything
            total += len(text)
    assert total == sum(map(len, kept))


def test_pairs_are_what_they_say(corpus: Corpus) -> None:
    """[CLS] A [SEP] B [SEP]; B follows A in its document, or is from another."""
    source = stream(corpus)
    texts = [" ".join(map(str, shard.tokens.tolist())) for shard in corpus.shards("train")]
    bounds = [[int(shard.sentences[d]) for d in shard.documents] for shard in corpus.shards("train")]
    checked = Counter()
    for place in source.places(0, source.examples(0)):
        row = source.row(place)
        ids = row.ids.tolist()
        assert len(ids) <= 48
        separators = [at for at, one in enumerate(ids) if one == corpus.words.sep]
        assert ids[0] == corpus.words.cls
        assert len(separators) == 2
        assert separators[1] == len(ids) - 1
        assert row.second == separators[1] - separators[0]
        first, second = ids[1 : separators[0]], ids[separators[0] + 1 : -1]
        assert first
        assert second
        shard = corpus.shards("train")[place[1]]
        planned = source._plan(0, place[1])
        a, b, c = (int(x[place[2]]) for x in (planned.begin, planned.middle, planned.end))
        assert f" {' '.join(map(str, first))} " in f" {' '.join(map(str, shard.tokens[a:b].tolist()))} "
        if row.random:
            low, high = bounds[place[1]][int(planned.document[place[2]]) :][:2]
            own = " ".join(map(str, shard.tokens[low:high].tolist()))
            needle = " ".join(map(str, second))
            assert any(f" {needle} " in f" {text} " for text in texts)
            if len(second) > 12:  # shorter ones may occur in both
                assert f" {needle} " not in f" {own} "
                checked["random"] += 1
        else:
            assert f" {' '.join(map(str, second))} " in f" {' '.join(map(str, shard.tokens[b:c].tolist()))} "
            checked["next"] += 1
    assert min(checked["random"], checked["next"]) > 50


def test_random_partners_are_from_any_other_document(corpus: Corpus) -> None:
    """Two shards of three documents each, whose tokens say where they are from; whole sentences, each as likely."""
    documents = [[5, 7, 6], [9], [4, 4]]
    parts = [shard_of(documents) for _ in range(2)]
    parts[1] = Shard(
        parts[1].tokens + 1_000, *(getattr(parts[1], name) for name in ("sentences", "documents", "hashes"))
    )
    writer = Writer(parts, corpus.words, 64)
    made = plan.Plan(*(np.array([value]) for value in (18, 27, 27, True, 1, 20)))  # the second document, alone
    begins, count = Counter(), 3_000
    for draw in range(count):
        row = writer.pair(0, made, 0, noise.bits(9, draw, np.arange(DRAWS)).tolist())
        assert row.random
        first, second = row.ids[1:10].tolist(), row.ids[11:-1].tolist()
        assert first == list(range(18, 27))
        assert second == list(range(second[0], second[0] + len(second)))  # from one place
        begins[second[0]] += 1
        assert second[-1] % 1_000 + 1 in (5, 12, 18, 27, 31, 35)
    starts = {0: 3, 5: 3, 12: 3, 27: 2, 31: 2, 1_000: 3, 1_005: 3, 1_012: 3, 1_018: 1, 1_027: 2, 1_031: 2}
    assert set(begins) == set(starts)  # none of 18, its own
    for start, sentences in starts.items():
        share = 1 / 5 / sentences
        assert abs(begins[start] - share * count) < bound(count, share), start


@pytest.mark.parametrize("layout", [PAIRS, PACKED, Layout(length=24), Layout(length=24, pairs=False, across=False)])
def test_batches_have_one_shape_and_no_row_is_too_long(corpus: Corpus, layout: Layout) -> None:
    source = stream(corpus, layout)
    for step in range(60):
        (batch,) = source.step(step)
        sizes = batch["attention_mask"].sum(1)
        assert batch["input_ids"].shape == (8, layout.length)
        assert int(sizes.max()) <= layout.length
        assert batch["masked_positions"].shape == batch["masked_labels"].shape == (source.predictions,)
        assert source.predictions == 8 * most(layout.length)
        assert ("next_sentence_label" in batch) == layout.pairs
        for ids, mask, types in zip(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], strict=True):
            size = int(mask.sum())
            assert (ids[size:] == corpus.words.pad).all()
            second = int(types.sum())
            assert types[size - second : size].all()
            assert bool(second) == layout.pairs


# -- masks ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["tokens", "words"])
def epoch(request: pytest.FixtureRequest, corpus: Corpus) -> tuple[bool, list[dict[str, torch.Tensor]]]:
    source = stream(corpus, Layout(length=48, whole_words=request.param), rows=32)
    return request.param, [batch for step in range(60) for batch in source.step(step)]


def test_masks_are_15_percent_and_80_10_10(corpus: Corpus, epoch: tuple[bool, list[dict[str, torch.Tensor]]]) -> None:
    whole, batches = epoch
    kinds, replaced = Counter(), Counter()
    for batch in batches:
        known = batch["masked_labels"] != IGNORED
        seen = batch["input_ids"].reshape(-1)[batch["masked_positions"][known]]
        true = batch["masked_labels"][known]
        kinds["masked"] += int((seen == corpus.words.mask).sum())
        kinds["kept"] += int((seen == true).sum())
        other = seen[(seen != corpus.words.mask) & (seen != true)]
        kinds["other"] += len(other)
        replaced.update(other.tolist())
        rows = torch.bincount(batch["masked_positions"][known] // 48, minlength=32)
        sizes = batch["attention_mask"].sum(1).double()
        wanted = (0.15 * sizes).round().clamp_min(1)
        assert (rows <= wanted).all()
        if not whole:
            assert torch.equal(rows.double(), wanted)
            assert not known.all() or (sizes == 48).all()
    total = kinds.total()
    vocabulary = len(corpus.words.replacements)
    for kind, share in (("masked", 0.8), ("kept", 0.1 + 0.1 / vocabulary), ("other", 0.1 - 0.1 / vocabulary)):
        assert abs(kinds[kind] - share * total) < bound(total, share), kind
    assert not set(replaced) & set(corpus.tokenizer.all_special_ids)
    assert len(replaced) > 0.9 * vocabulary


def test_special_tokens_are_never_masked(corpus: Corpus, epoch: tuple[bool, list[dict[str, torch.Tensor]]]) -> None:
    special = torch.tensor(corpus.tokenizer.all_special_ids)
    for batch in epoch[1]:
        known = batch["masked_labels"] != IGNORED
        assert not torch.isin(batch["masked_labels"][known], special).any()
        assert batch["attention_mask"].reshape(-1)[batch["masked_positions"][known]].all()
        places = batch["masked_positions"][known].tolist()
        assert len(set(places)) == len(places)


def test_whole_words_are_masked_whole(corpus: Corpus, epoch: tuple[bool, list[dict[str, torch.Tensor]]]) -> None:
    """By the names of the tokens; without the option many words are masked in part."""
    whole, batches = epoch
    names = corpus.tokenizer.convert_ids_to_tokens(list(range(len(corpus.tokenizer))))
    partly = together = 0
    for batch in batches:
        chosen = torch.zeros(batch["input_ids"].numel(), dtype=torch.bool)
        chosen[batch["masked_positions"][batch["masked_labels"] != IGNORED]] = True
        for ids, hidden in zip(original(batch), chosen.reshape(batch["input_ids"].shape), strict=True):
            words: list[list[bool]] = []
            inside = False
            for one, here in zip(ids.tolist(), hidden.tolist(), strict=True):
                if one in corpus.tokenizer.all_special_ids:
                    inside = False
                    continue
                if names[one].startswith("##") and inside:
                    words[-1].append(here)
                else:
                    words.append([here])
                inside = True
            partly += sum(any(word) and not all(word) for word in words)
            together += sum(len(word) > 1 and all(word) for word in words)
    assert (partly == 0) == whole
    assert together > 100 if whole else partly > 100


def test_words_are_taken_while_they_fit() -> None:
    """By hand: words of 3, 1 and 2 tokens in this order, two of them may be masked: the first is passed over."""
    ids = np.array([[1, 10, 11, 11, 10, 10, 11, 2]])
    words = type("Words", (), {"begins": np.arange(20) == 10})()
    present = np.array([[False, *[True] * 6, False]])
    keys = np.array([[0, 1, 2, 9, 9, 9, 9, 9]], dtype=np.uint64)
    taken = choose(ids, present, np.array([13]), words, keys, whole=True)  # type: ignore[arg-type]
    assert np.flatnonzero(taken).tolist() == [4]  # 3 do not fit in 2, then 1 fits, then 2 do not
    taken = choose(ids, present, np.array([20]), words, keys, whole=True)  # type: ignore[arg-type]
    assert np.flatnonzero(taken).tolist() == [1, 2, 3]


def test_masks_are_new_in_every_epoch(corpus: Corpus) -> None:
    source = stream(corpus, PACKED)
    epochs = [source.batch([(epoch, 0, one) for one in range(8)]) for epoch in (0, 1)]
    assert torch.equal(original(epochs[0]), original(epochs[1]))
    assert not torch.equal(epochs[0]["masked_positions"], epochs[1]["masked_positions"])


# -- order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [PAIRS, PACKED])
def test_every_example_once_an_epoch_over_three_ranks(
    corpus: Corpus, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by their places, over two epochs whose end lies within a batch; windows smaller than the corpus."""
    monkeypatch.setattr("earlybert.data.stream.WINDOW", 3)
    ranks = [stream(corpus, layout, rows=4, accumulate=2, rank=rank, world=3) for rank in range(3)]
    seen: Counter[tuple[int, int, int]] = Counter()
    for rank in ranks:
        real = rank.batch

        def counting(places, real=real):
            seen.update(places)
            return real(places)

        rank.batch = counting  # type: ignore[method-assign]
    sizes = [ranks[0].examples(epoch) for epoch in range(2)]
    steps = -(-sum(sizes) // 24)
    for rank in ranks:
        for step in range(steps):
            rank.step(step)
    for epoch, size in enumerate(sizes):
        mine = {place: count for place, count in seen.items() if place[0] == epoch}
        assert len(mine) == size
        assert set(mine.values()) == {1}
    assert seen.total() == steps * 24


def test_pairs_are_planned_in_ten_ways(corpus: Corpus) -> None:
    """BERT's script copies the data ten times, with draws of their own; the eleventh epoch plans as the first."""
    source = stream(corpus)
    sizes = [source.examples(epoch) for epoch in range(20)]
    assert len(set(sizes[:10])) > 5
    assert sizes[10:] == sizes[:10]


def test_the_order_is_random_and_new_in_every_epoch(corpus: Corpus) -> None:
    source = stream(corpus, PACKED)
    size = source.examples(0)
    first, second = ([place[1:] for place in source.places(at, size)] for at in (0, size))
    assert first != second
    assert sorted(first) == sorted(second)
    assert len({place[0] for place in first[:40]}) > 3  # shards are mixed


def test_two_ranks_see_what_one_sees_with_twice_the_accumulation(corpus: Corpus) -> None:
    one = stream(corpus, accumulate=4)
    two = [stream(corpus, accumulate=2, rank=rank, world=2) for rank in range(2)]
    for step in (0, 7):
        parts = [rank.step(step) for rank in two]
        assert equal(one.step(step), [parts[micro % 2][micro // 2] for micro in range(4)])


def test_any_step_is_reached_directly(corpus: Corpus) -> None:
    """Also behind the end of several epochs, by a stream that saw nothing before."""
    walked = stream(corpus).starting_at(0)
    steps = [next(walked) for _ in range(200)]
    assert stream(corpus).examples(0) < 8 * 150
    for step in (3, 117, 199):
        assert equal(next(stream(corpus).starting_at(step)), steps[step])
    assert not equal(stream(corpus, seed=4).step(0), steps[0])


def test_evaluation_sees_every_held_out_example_once_and_the_same_masks(corpus: Corpus) -> None:
    source = stream(corpus, split="validation", rows=5)
    batches = list(source.once())
    assert sum(len(batch["input_ids"]) for batch in batches) == source.examples(0)
    assert equal(batches, list(stream(corpus, split="validation", rows=5).once()))


def test_unfit_layouts_are_refused(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(eb.Refused, match="too short"):
        stream(corpus, Layout(length=4))
    words = corpus.words
    monkeypatch.setitem(corpus.__dict__, "words", type(words)(**{**vars(words), "begins": None}))
    with pytest.raises(eb.Refused, match="does not mark where words begin"):
        stream(corpus, Layout(whole_words=True))


def test_noise_is_uniform_and_independent() -> None:
    u = noise.uniform(1, np.arange(400)[:, None], np.arange(250))
    counts = np.histogram(u, bins=50, range=(0, 1))[0]
    assert (abs(counts - 2_000) < bound(100_000, 0.02)).all()
    for a, b in ((u[:-1], u[1:]), (u[:, :-1], u[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4.5 / math.sqrt(a.size)
    assert not np.array_equal(u, noise.uniform(2, np.arange(400)[:, None], np.arange(250)))
    assert set(noise.below(3, 1, np.arange(100)).tolist()) == {0, 1, 2}
