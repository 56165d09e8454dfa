"""The coefficient stream, mask distances and the stop rule, against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from earlybert import Gates, History, Refused, Settled, mask_distance
from earlybert.ticket import HistoryWriter
from tests.conftest import HEADS, LAYERS, NEURONS, tiny_model


def record(path: Path, steps: int, *, rows: int = 0, seed: int = 0, buffer: int = 4) -> list[torch.Tensor]:
    gates = Gates(tiny_model())
    torch.manual_seed(seed)
    writer = HistoryWriter(path, gates, rows=rows, buffer=buffer)
    taken = []
    for _ in range(steps):
        for parameter in gates.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        taken.append(gates.row().clone())
        writer.record()
    writer.close()
    return taken


def test_rows_come_back_exactly(tmp_path: Path) -> None:
    taken = record(tmp_path / "history.bin", 11)
    history = History(tmp_path / "history.bin")
    assert len(history) == 11
    for step, row in enumerate(taken, start=1):
        both = np.concatenate([history.coefficients(step, kind).ravel() for kind in ("heads", "neurons")])
        assert np.array_equal(both, row.numpy())
    assert history.coefficients(1, "heads").shape == (LAYERS, HEADS)
    with pytest.raises(IndexError):
        history.coefficients(12, "heads")


def test_a_torn_last_row_is_not_there_and_a_resumed_search_goes_on_from_any_row(tmp_path: Path) -> None:
    path = tmp_path / "history.bin"
    taken = record(path, 9)
    with open(path, "ab") as file:
        file.write(b"\x00" * 17)
    assert len(History(path)) == 9
    record(path, 3, rows=5, seed=1)
    history = History(path)
    assert len(history) == 8
    assert np.array_equal(history.coefficients(5, "neurons").ravel(), taken[4][LAYERS * HEADS :].numpy())
    with pytest.raises(Refused, match="does not hold"):
        record(path, 1, rows=50)


def test_distance_against_numpy(tmp_path: Path) -> None:
    record(tmp_path / "history.bin", 6)
    history = History(tmp_path / "history.bin")
    first, second = (np.abs(history.coefficients(step, "neurons").astype(np.float64)) for step in (2, 6))

    def mask(values: np.ndarray) -> np.ndarray:
        removed = int(0.4 * values.size + 0.5)
        return values > np.sort(values.ravel())[removed - 1]

    expected = (mask(first) != mask(second)).mean(axis=1)
    got = history.distance(2, 6, "neurons", 0.4)
    np.testing.assert_allclose(got.per_layer, expected)
    assert got.overall == pytest.approx(expected.mean())
    matrix = history.distances("neurons", 0.4, steps=[2, 4, 6])
    assert matrix.shape == (3, 3, LAYERS)
    np.testing.assert_allclose(matrix[0, 2], expected)
    np.testing.assert_allclose(matrix, matrix.transpose(1, 0, 2))
    assert (np.diagonal(matrix) == 0).all()


def test_mask_distance_ends() -> None:
    mask = np.random.default_rng(0).random((3, 10)) > 0.5
    assert mask_distance(mask, mask).overall == 0
    assert mask_distance(mask, ~mask).overall == 1
    with pytest.raises(ValueError, match="alike"):
        mask_distance(mask, mask[:2])


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * 400, b'{"format": "earlybert-history-1", "layers": 0}'])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "history.bin").write_bytes(content)
    with pytest.raises(Refused):
        History(tmp_path / "history.bin")


def test_ties_do_not_settle_before_the_minimum_and_noise_does_not_settle() -> None:
    rule = Settled(heads=1, neurons=0.4, every=5, window=2, threshold=0.05, min_steps=20)
    watch = rule.watch(cap=100)
    still = np.ones((LAYERS, HEADS), np.float32), np.ones((LAYERS, NEURONS), np.float32)
    stops = [step for step in range(1, 41) if watch.due(step) and watch.check(step, *still)]
    assert stops == [30, 35, 40]  # checks at 20, 25, 30: two distances of zero, and they stay so
    random = np.random.default_rng(0)
    watch = rule.watch(cap=100)
    noise = [
        watch.check(step, *(random.random(part.shape).astype(np.float32) for part in still))
        for step in range(1, 101)
        if watch.due(step)
    ]
    assert not any(noise)
    assert len(watch.distances) == 16


@pytest.mark.parametrize("moving", ["heads", "neurons"])
def test_a_search_settles_when_heads_and_neurons_both_do(moving: str) -> None:
    random = np.random.default_rng(0)
    watch = Settled(heads=1, neurons=0.4, every=1, window=2, min_steps=1).watch(cap=100)
    now = {"heads": np.ones((LAYERS, HEADS), np.float32), "neurons": np.ones((LAYERS, NEURONS), np.float32)}
    for step in range(1, 6):
        now[moving] = random.random(now[moving].shape).astype(np.float32)
        assert not watch.check(step, **now)


def test_masks_are_compared_within_the_scope_of_their_kind() -> None:
    """Ten times as large, the first layer keeps a third unit of four in place of one of the other layer."""
    before = np.array([[1, 2, 3, 4], [1.5, 2.5, 3.5, 4.5]], dtype=np.float32)
    after = before * np.array([[10], [1]], dtype=np.float32)
    for scopes, moved in ((("layer", "global"), (0.0, 0.25)), (("global", "layer"), (0.25, 0.0))):
        heads_scope, neurons_scope = scopes
        rule = Settled(heads=0.5, neurons=0.5, heads_scope=heads_scope, neurons_scope=neurons_scope)  # type: ignore[arg-type]
        watch = rule.watch(cap=100)
        watch.check(60, before, before)
        watch.check(80, after, after)
        assert watch.distances == [(80, *moved)]


def test_default_spacing_is_five_per_cent_of_the_cap() -> None:
    assert Settled().watch(cap=1000).every == 50
    assert Settled().watch(cap=1010).every == 51  # so that there are 20 checks at most
    assert Settled().watch(cap=100).every == 20
    assert Settled(every=3).watch(cap=1000).every == 3
    with pytest.raises(Refused):
        Settled(threshold=1.5)
