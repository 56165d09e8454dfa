"""Differences over paired seeds: held against tasks.metrics row by row, and against the truth in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earlybert.recipes.report import intervals
from earlybert.recipes.statistics import METRICS, _judge, _judged, difference, holm, interval, over_tasks
from earlybert.tasks import Predictions
from earlybert.tasks.metrics import compute


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        *(
            (name, classes)
            for name in ("accuracy", "macro_f1", "matthews", "pearson", "spearman")
            for classes in (2, 3)
        ),
        ("f1", 2),
    ],
)
def test_a_resample_by_counts_is_the_metric_of_the_repeated_rows(name: str, classes: int) -> None:
    random = np.random.default_rng(classes)
    labels = random.integers(classes, size=80)
    values = np.where(random.random(80) < 0.7, labels, random.integers(classes, size=80))
    if name in ("pearson", "spearman"):
        labels, values = labels + random.normal(size=80).round(1), values + random.normal(size=80).round(1)
    counts = random.multinomial(80, np.full(80, 1 / 80), size=6).astype(float)
    found = METRICS[name](values.astype(float), labels.astype(float), counts)
    for row, got in zip(counts.astype(int), found, strict=True):
        expected = compute([name], np.repeat(values, row), np.repeat(labels, row), classes=classes)[name]
        assert got == pytest.approx(expected, abs=1e-12)


def test_tests_by_hand() -> None:
    """Non-inferiority is one-sided, at the margin 1/2 and smaller for less of a loss; a difference is two-sided."""
    at, less, none = (_judged(mean, 0.001, np.inf, 3, 0.003) for mean in (-0.003, -0.001, 0.0))
    assert at.inferior == pytest.approx(0.5)
    assert less.inferior == pytest.approx(0.02275, abs=1e-5)  # two standard errors
    assert less.different == pytest.approx(0.31731, abs=1e-5)  # one, on either side
    assert none.different == pytest.approx(1.0)


def test_the_larger_variance_counts_with_the_freedom_of_its_seeds() -> None:
    found = _judge(0.01, 0.0, 4e-6, 4, 0.0)
    assert found.error == pytest.approx(2e-3)
    assert found.freedom == pytest.approx(3)
    found = _judge(0.01, 8e-6, 4e-6, 4, 0.0)
    assert found.error == pytest.approx(8e-6**0.5)
    assert found.freedom == pytest.approx(12)


def test_a_resample_varies_as_the_mean_does_by_seeds_and_by_examples() -> None:
    """Two seeds that differ by 2 have a mean of variance 1, and so do these rows; the two variances add."""
    rows = np.tile([-10.0, 10.0], 50)  # variance 100, of the mean of 100 rows 1
    found = difference([rows - 1, rows + 1], [np.zeros(100)] * 2, np.zeros(100), "mean", margin=0.0)
    assert found.error**2 == pytest.approx(1 + 1, rel=0.1)


def simulated(rows: int, seeds: int, effect: float, spread: float, random: np.random.Generator) -> tuple:
    """Two methods whose true accuracies differ by `effect`; every run's own accuracy scatters by `spread`."""
    difficulty = random.random(rows)
    runs = []
    for shift in (effect, 0.0):
        bases = 0.8 + shift + spread * random.normal(size=seeds)
        # rows are shared: a row that is hard for one method is hard for the other
        runs.append([(0.7 * difficulty + 0.3 * random.random(rows) < base - 0.15).astype(float) for base in bases])
    return runs[0], runs[1], np.ones(rows)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 8])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds: int) -> None:
    random = np.random.default_rng(seeds)
    held = 0
    for trial in range(200):
        ours, theirs, labels = simulated(300, seeds, 0.0, 0.02, random)
        found = difference(ours, theirs, labels, "accuracy", margin=0.003, resamples=200, seed=trial)
        held += found.low <= 0.0 <= found.high
    assert held >= 200 * 0.90  # 95 % meant; below 90 % would be a one in a thousand chance


@pytest.mark.slow
def test_a_mean_over_tasks_holds_the_truth_and_is_narrower() -> None:
    """Tasks of different sizes, whose own intervals differ."""
    random = np.random.default_rng(7)
    held, narrower = 0, 0
    for trial in range(200):
        found = [
            difference(*simulated(rows, 3, 0.0, 0.02, random), "accuracy", margin=0.003, resamples=200, seed=trial)
            for rows in (100, 200, 400)
        ]
        mean = over_tasks(found, margin=0.003)
        assert mean.mean == pytest.approx(np.mean([each.mean for each in found]))
        held += mean.low <= 0.0 <= mean.high
        narrower += mean.high - mean.low < np.mean([each.high - each.low for each in found])
    assert held >= 200 * 0.90
    assert narrower >= 195


def test_a_task_of_which_nothing_is_known_leaves_the_mean_open() -> None:
    """Models that all give one answer there would else make the mean of the others look certain."""
    random = np.random.default_rng(0)
    labels = random.integers(2, size=400)
    learned = [np.where(random.random(400) < 0.8, labels, 1 - labels) for _ in range(4)]
    constant = [np.zeros(400, dtype=int)] * 2
    found = [
        difference(learned[:2], learned[2:], labels, "accuracy", margin=0.003),
        difference(constant, constant, labels, "accuracy", margin=0.003),
    ]
    mean = over_tasks(found, margin=0.003)
    assert (mean.inferior, mean.different, mean.detectable) == (1.0, 1.0, None)


def test_a_mean_over_tasks_by_hand() -> None:
    """Two tasks of one seed: the errors add in squares, Student's t is the normal; of equal runs nothing is known."""
    random = np.random.default_rng(1)
    one, two = (difference(*simulated(300, 1, 0.05, 0.0, random), "accuracy", margin=0.003) for _ in range(2))
    mean = over_tasks([one, two], margin=0.003)
    error = (one.error**2 + two.error**2) ** 0.5 / 2
    assert mean.error == pytest.approx(error)
    assert (mean.high - mean.low) == pytest.approx(2 * 1.959964 * error)
    assert over_tasks([one, one], margin=0.003).error == pytest.approx(one.error / 2**0.5)
    same = difference([np.ones(9)], [np.ones(9)], np.ones(9), "accuracy", margin=0.003)
    assert over_tasks([same, same], margin=0.003) == same
    assert over_tasks([one, same], margin=0.003).detectable is None
    several = difference(*simulated(300, 4, 0.05, 0.02, random), "accuracy", margin=0.003)
    assert several.freedom is not None
    assert over_tasks([several], margin=0.003).freedom == pytest.approx(several.freedom)
    assert over_tasks([several], margin=0.003).low == pytest.approx(several.low)


@pytest.mark.slow
def test_a_detectable_difference_is_detected_four_times_in_five() -> None:
    random = np.random.default_rng(0)
    said = [
        difference(*simulated(300, 8, 0.0, 0.02, random), "accuracy", margin=0.003, resamples=200) for _ in range(60)
    ]
    effect = 0.7 * float(np.mean([found.detectable for found in said]))  # a shift of 0.7 moves accuracy by 1
    shown = 0
    for _ in range(120):
        found = difference(*simulated(300, 8, effect, 0.02, random), "accuracy", margin=0.003, resamples=200)
        shown += found.different < 0.05
    assert 0.68 <= shown / 120 <= 0.92


def test_a_clear_loss_is_inferior_and_an_equal_method_is_not() -> None:
    random = np.random.default_rng(1)
    labels = np.ones(5000)
    base = [(random.random(5000) < 0.9).astype(float) for _ in range(5)]
    worse = [np.where(random.random(5000) < 0.03, 0.0, run) for run in base]
    lost = difference(worse, base, labels, "accuracy", margin=0.003)
    assert lost.mean == pytest.approx(np.mean(worse) - np.mean(base))
    assert lost.high < 0
    assert lost.inferior > 0.99
    same = difference(base, base, labels, "accuracy", margin=0.003)
    assert (same.mean, same.low, same.high, same.inferior, same.different) == (0, 0, 0, 1, 1)
    assert same.detectable is None  # two collapsed models would look like this: it shows nothing
    better = difference(base, worse, labels, "accuracy", margin=0.003)
    assert better.inferior < 1e-6
    assert better.low > 0


def test_one_seed_speaks_of_the_examples_alone() -> None:
    random = np.random.default_rng(2)
    ours, theirs = (random.random(400) < 0.8).astype(float), (random.random(400) < 0.8).astype(float)
    found = difference([ours], [theirs], np.ones(400), "accuracy", margin=0.003)
    error = np.std(ours - theirs, ddof=1) / 20  # of a mean of 400 paired differences
    assert found.high - found.mean == pytest.approx(1.96 * error, rel=0.08)


@pytest.mark.parametrize(("hits", "rows"), [(24, 24), (0, 24), (200, 200), (23, 24), (170, 200), (5, 24)])
def test_the_interval_of_a_share_ends_where_the_score_test_would_reject(hits: int, rows: int) -> None:
    """Also where all rows are right, or none."""
    values = (np.arange(rows) < hits).astype(float)
    share = hits / rows
    for name, labels in (("accuracy", np.ones(rows)), ("mean", np.ones(rows))):
        low, high = interval(values, labels, name)
        for end in {low, high} - {0.0, 1.0}:
            assert abs(share - end) / (end * (1 - end) / rows) ** 0.5 == pytest.approx(1.959964, abs=1e-5)
        assert low <= share <= high
        assert high - low > 0.01
    assert interval(np.ones(24), np.ones(24), "accuracy") == pytest.approx((0.8620, 1.0), abs=5e-5)


def test_a_class_of_one_row_does_not_widen_the_interval_of_f1_to_1() -> None:
    """A third of the resamples lack that row, and all others are right."""
    labels = np.array([1] + [0] * 23)
    low, high = interval(np.zeros(24), labels.astype(float), "macro_f1")
    assert 0.4 < low < high <= 0.5
    many = np.repeat(np.arange(24), 2)
    low, high = interval(np.where(many == 5, 6, many).astype(float), many.astype(float), "macro_f1", classes=24)
    assert low < compute(["macro_f1"], np.where(many == 5, 6, many), many)["macro_f1"] < high <= 1


def test_what_no_resample_changes_has_no_interval() -> None:
    right = np.arange(24) % 2
    assert set(intervals(Predictions(right, right, ("accuracy", "macro_f1", "matthews"), 2))) == {"accuracy"}
    half = np.full(24, 0.5)
    questions = Predictions(half, np.ones(24), ("f1", "exact_match"), 0, extra={"exact_match": np.zeros(24)})
    assert set(intervals(questions)) == {"exact_match"}


def test_an_interval_is_the_binomial_one_and_that_of_repeated_rows() -> None:
    random = np.random.default_rng(3)
    labels = random.integers(2, size=300).astype(float)
    values = np.where(random.random(300) < 0.85, labels, 1 - labels)
    low, high = interval(values, labels, "accuracy")
    share = (values == labels).mean()
    wide = 1.96 * (share * (1 - share) / 300) ** 0.5
    assert (low, high) == pytest.approx((share - wide, share + wide), abs=0.006)
    found = [
        compute(["f1"], values[rows].astype(int), labels[rows].astype(int), classes=2)["f1"]
        for rows in random.integers(300, size=(2000, 300))
    ]
    assert interval(values, labels, "f1") == pytest.approx(tuple(np.quantile(found, (0.025, 0.975))), abs=0.006)


@pytest.mark.parametrize(
    ("classes", "present"), [(2, [0]), (2, [1]), (2, [0, 1]), (3, [0, 1]), (4, [0, 2, 3]), (9, [5])]
)
@pytest.mark.parametrize("name", ["f1", "macro_f1"])
def test_the_interval_of_an_f1_is_of_the_score_that_is_shown(name: str, classes: int, present: list[int]) -> None:
    """Whether or not every class of the task is among these rows."""
    random = np.random.default_rng(classes)
    labels = random.choice(present, 40)
    values = np.where(random.random(40) < 0.8, labels, random.choice(present, 40))
    predictions = Predictions(values, labels, (name,), classes)
    found = [predictions.take(rows).score()[name] for rows in random.integers(40, size=(500, 40))]
    assert interval(values, labels, name, classes=classes) == pytest.approx(
        tuple(np.quantile(found, (0.025, 0.975))), abs=0.05
    )
    whole = difference([labels], [values], labels, name, margin=0.0, classes=classes, resamples=2)
    perfect = Predictions(labels, labels, (name,), classes).score()[name]
    assert whole.mean == pytest.approx(perfect - predictions.score()[name])


def test_unpaired_seeds_are_an_error() -> None:
    with pytest.raises(ValueError, match="not paired: 2 and 1"):
        difference([np.ones(3)] * 2, [np.ones(3)], np.ones(3), "accuracy", margin=0.003)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_stepwise_rule_rejects(p_values: list[float]) -> None:
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    rejected = set()
    for rank, place in enumerate(order):  # Holm's own words: stop at the first that is not small enough
        if p_values[place] > 0.05 / (len(p_values) - rank):
            break
        rejected.add(place)
    adjusted = holm(p_values)
    for place, value in enumerate(adjusted):
        if abs(value - 0.05) > 1e-9:
            assert (value < 0.05) == (place in rejected)
