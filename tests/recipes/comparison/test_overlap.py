"""Overlap of tickets by hand, and random tickets at chance."""

from __future__ import annotations

import pytest

from earlybert import Ticket
from earlybert.baselines import random_ticket
from earlybert.recipes.comparison.overlap import overlap


def test_by_hand() -> None:
    first = Ticket(((0, 1), (0,)), ((0, 1, 2), (5,)), "bert", 4, 8)
    second = Ticket(((1, 2), (3,)), ((2, 3, 4), (5,)), "bert", 4, 8)
    found = overlap([first, second])
    assert found.heads == pytest.approx(1 / 3)
    assert found.heads_chance == pytest.approx((2 * 2 / 4 + 1 / 4) / 3)
    assert found.neurons == pytest.approx(2 / 4)
    assert found.neurons_chance == pytest.approx((3 * 3 / 8 + 1 / 8) / 4)
    assert overlap([first, first]).neurons == 1
    with pytest.raises(ValueError, match="two tickets"):
        overlap([first])


def test_random_tickets_overlap_by_chance() -> None:
    widths = Ticket((tuple(range(8)),) * 6, (tuple(range(900)),) * 6, "bert", 12, 1536)
    found = overlap([random_ticket.like(widths, seed) for seed in range(12)])
    assert found.heads == pytest.approx(found.heads_chance, abs=0.03)
    assert found.neurons == pytest.approx(found.neurons_chance, abs=0.005)
