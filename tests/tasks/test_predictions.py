"""Predictions: scored as the libraries score them, and the same after a trip to disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from earlybert.anatomy import Refused
from earlybert.tasks import Predictions


def some(rows: int = 50, seed: int = 0, **about: Any) -> Predictions:
    random = np.random.default_rng(seed)
    values, labels = random.integers(0, 2, rows), random.integers(0, 2, rows)
    ids = tuple(f"ä{row}" for row in range(rows))
    return Predictions(values, labels, ("accuracy", "f1"), 2, ids=ids, **about)


def questions() -> Predictions:
    f1s = np.array([0.5, 1.0, 0.0])
    extra = {"exact_match": np.array([0.0, 1.0, 0.0])}
    answers, ids = ("a\ncat", "", "“é”"), ("1", "2", "3")
    return Predictions(f1s, np.ones(3), ("f1", "exact_match"), 0, ids=ids, answers=answers, extra=extra)


def same(a: Predictions, b: Predictions) -> bool:
    assert (a.metrics, a.classes, a.ids, a.answers) == (b.metrics, b.classes, b.ids, b.answers)
    assert list(a.extra) == list(b.extra)
    assert list(a.also) == list(b.also)
    pairs = [(a.values, b.values), (a.labels, b.labels), *((a.extra[name], b.extra[name]) for name in a.extra)]
    equal = all(left.dtype == right.dtype and np.array_equal(left, right) for left, right in pairs)
    return equal and all(same(a.also[name], b.also[name]) for name in a.also)


def test_score_has_the_headline_first_and_further_rows_under_their_name() -> None:
    one, two = some(), some(40, 1)
    both = Predictions(one.values, one.labels, one.metrics, 2, also={"mismatched": two})
    score = both.score()
    assert list(score) == ["accuracy", "f1", "accuracy_mismatched", "f1_mismatched"]
    assert score["accuracy"] == pytest.approx(accuracy_score(one.labels, one.values))
    assert score["f1"] == pytest.approx(f1_score(one.labels, one.values))
    assert score["f1_mismatched"] == pytest.approx(f1_score(two.labels, two.values))
    assert questions().score() == {"f1": 0.5, "exact_match": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    "made",
    [
        some(),
        questions(),
        some(also={"mismatched": some(7, 3)}),
        Predictions(np.ones(2) / 3, np.zeros(2), ("pearson",), 1),
    ],
    ids=["classes", "questions", "also", "values"],
)
def test_a_trip_to_disk_changes_nothing(made: Predictions, tmp_path: Path) -> None:
    made.save(tmp_path / "p.safetensors")
    assert os.listdir(tmp_path) == ["p.safetensors"]
    assert same(Predictions.load(tmp_path / "p.safetensors"), made)


def test_resampled_rows_carry_everything_along() -> None:
    rows = np.array([2, 0, 0])
    taken = questions().take(rows)
    assert taken.score() == {"f1": pytest.approx(1 / 3), "exact_match": 0.0}
    assert taken.ids == ("3", "1", "1")
    assert taken.answers == ("“é”", "a\ncat", "a\ncat")
    whole = some(also={"mismatched": some(7, 3)})
    assert list(whole.take(range(50)).score()) == ["accuracy", "f1"]
    assert whole.take([1, 4]).values.tolist() == whole.values[[1, 4]].tolist()


def test_columns_and_metrics_have_to_fit() -> None:
    with pytest.raises(Refused, match="one length"):
        Predictions(np.zeros(3), np.zeros(2), ("accuracy",), 2)
    with pytest.raises(Refused, match="one length"):
        Predictions(np.zeros(3), np.zeros(3), ("accuracy",), 2, ids=("a",))
    for metrics in ((), ("acuracy",)):
        with pytest.raises(Refused, match="need metrics among"):
            Predictions(np.zeros(3), np.zeros(3), metrics, 2)
    with pytest.raises(Refused, match="exact_match"):
        Predictions(np.zeros(3), np.ones(3), ("f1", "exact_match"), 0)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    file = tmp_path / "p.safetensors"
    with pytest.raises(Refused, match="is not there"):
        Predictions.load(file)
    some().save(file)
    whole = file.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], whole[:-1], b"x" * 100):
        file.write_bytes(broken)
        with pytest.raises(Refused, match="is broken"):
            Predictions.load(file)
    for metadata in (
        {},
        {"earlybert": "{}"},
        {"earlybert": "[]"},
        {"earlybert": '{"format": "earlybert-predictions-1"}'},
    ):
        save_file({"values": np.zeros(2)}, file, metadata)
        with pytest.raises(Refused, match="is broken"):
            Predictions.load(file)
    save_file({"values": np.zeros(2)}, file, {"earlybert": '{"format": "earlybert-predictions-9"}'})
    with pytest.raises(Refused, match="another version"):
        Predictions.load(file)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.numpy

    file = tmp_path / "p.safetensors"
    some().save(file)
    before = file.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(Refused, match="No space left"):
        questions().save(file)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["p.safetensors"]
