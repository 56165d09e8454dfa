"""The part of train that is tuned on shares no text with the rest."""

from __future__ import annotations

import random

import pytest

from earlybert.anatomy import Refused
from earlybert.tasks import Examples, Task
from earlybert.tasks.groups import for_tuning, groups


def pairs_task(rows: int = 400) -> Task:
    chance = random.Random(0)
    texts = [f"Premise  number {chance.randrange(rows // 4)}" for _ in range(rows)]
    others = [f"hypothesis {chance.randrange(rows * 3)}" for _ in range(rows)]
    labels = [chance.randrange(2) for _ in range(rows)]
    validation = Examples(["official"] * 4, ["row"] * 4, [0, 1, 0, 1])
    return Task("pairs", "classification", ("no", "yes"), Examples(texts, others, labels), validation)


def test_no_text_is_on_both_sides_and_the_validation_rows_are_left_alone() -> None:
    task = pairs_task()
    tuned = for_tuning(task, seed=3)
    assert len(tuned.train) + len(tuned.validation) == 400
    assert 20 <= len(tuned.validation) <= 40
    sides = [{text.lower() for text in (*part.texts, *part.pairs)} for part in (tuned.train, tuned.validation)]
    assert not sides[0] & sides[1]
    assert "official" not in sides[1]
    assert for_tuning(task, seed=3).validation.texts == tuned.validation.texts
    assert for_tuning(task, seed=4).validation.texts != tuned.validation.texts


def test_chains_hang_together_up_to_case_and_blanks() -> None:
    examples = Examples(["A  b", "a B", "c", "d"], ["x", "y", "Y ", "z"], [0, 1, 0, 1])
    number = groups(examples)
    assert number[0] == number[1] == number[2] != number[3]


def test_rows_that_all_share_a_text_cannot_be_split() -> None:
    examples = Examples([f"premise {row}" for row in range(30)], ["yes"] * 30, [0, 1] * 15)
    task = Task("yes", "classification", ("no", "yes"), examples, examples)
    with pytest.raises(Refused, match="share texts that none can be held out"):
        for_tuning(task, seed=0)
