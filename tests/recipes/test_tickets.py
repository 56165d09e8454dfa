"""What `earlybert ticket` prints of tickets that were made by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import earlybert
from earlybert import Scores, Ticket, apply, draw
from earlybert.cli import main
from earlybert.ticket.distance import jaccard, jaccard_by_chance
from tests.conftest import tiny_model

Shown = pytest.CaptureFixture[str]


def by_hand(heads: Any = ((0, 2), (1,), (0, 1, 2, 3)), neurons: int = 40) -> Ticket:
    return Ticket(heads, (tuple(range(neurons)), (5,), tuple(range(64))), "bert", 4, 64)


def test_show_finds_a_ticket_in_a_file_a_run_and_a_model(tmp_path: Path, capsys: Shown) -> None:
    ticket = by_hand()
    ticket.save(tmp_path / "ticket.json")
    earlybert.save(apply(tiny_model(), ticket), tmp_path / "model")
    for path in (tmp_path / "ticket.json", tmp_path, tmp_path / "model"):
        assert main(["ticket", "show", str(path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
        assert cells == [
            ["1", "■ · ■ ·", "2 of 4", "40 of 64", "62%"],
            ["2", "· ■ · ·", "1 of 4", "1 of 64", "2%"],
            ["3", "■ ■ ■ ■", "4 of 4", "64 of 64", "100%"],
            ["all", "", "7 of 12", "105 of 192", "55%"],
        ]
        assert main(["ticket", "show", str(path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert Ticket.from_dict({k: v for k, v in found.items() if k in ticket.to_dict()}) == ticket
        assert (found["heads_kept"], found["neurons_kept"]) == ([2, 1, 4], [40, 1, 64])


def test_show_says_what_drew_it_and_how_sure_it_is(tmp_path: Path, capsys: Shown) -> None:
    heads = torch.tensor([[4.0, 3.0, 2.5, 1.0]] * 2)
    neurons = torch.arange(16.0).reshape(2, 8)
    drawn = draw(Scores(tuple(heads), tuple(neurons), "bert", steps=30, seed=7), heads=2, neurons=0.25, align=2)
    drawn.save(tmp_path / "t.json")
    assert main(["ticket", "show", str(tmp_path / "t.json")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Budget: remove 2 heads of each layer and 25 % of all neurons; neurons in multiples of 2." in out
    assert "Drawn by coefficients after 30 steps, seed 7." in out
    assert "heads 0.5, neurons 1." in out


def test_diff_by_hand(tmp_path: Path, capsys: Shown) -> None:
    by_hand().save(tmp_path / "a.json")
    by_hand(((1, 2), (1,), (0, 1, 2, 3)), neurons=10).save(tmp_path / "b.json")
    words = ["ticket", "diff", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["same"]
    assert found["heads"][0]["jaccard"] == pytest.approx(1 / 3)
    assert (found["heads"][0]["only_first"], found["heads"][0]["only_second"]) == ([0], [1])
    assert found["neurons"][0]["only_first"] == list(range(10, 40))
    assert found["neurons"][0]["jaccard"] == pytest.approx(10 / 40)
    assert found["heads"][2]["by_chance"] == pytest.approx(1)
    assert found["all"]["heads"]["jaccard"] == pytest.approx(6 / 8)
    assert found["all"]["neurons"]["jaccard"] == pytest.approx(75 / 105)
    assert main(words) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in lines[0].split("│")[1:-1]] == ["1", "33% (39%)", "1", "2", "25% (14%)", "30", "0"]
    assert main([*words[:3], words[2]]) == 0
    assert "keep the same heads and neurons" in capsys.readouterr().out


def test_jaccard_by_chance_is_the_mean_over_all_sets() -> None:
    for first, second, units in ((2, 3, 5), (1, 1, 4), (4, 2, 4), (3, 3, 6)):
        fixed = range(first)
        every = [jaccard(fixed, other) for other in itertools.combinations(range(units), second)]
        assert jaccard_by_chance(first, second, units) == pytest.approx(sum(every) / len(every))
    assert 0 < jaccard_by_chance(2000, 1800, 3072) < 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "say earlybert ticket show PATH, or earlybert ticket diff A B"),
        (["show"], "say earlybert ticket show PATH"),
        (["diff", "a.json"], "say earlybert ticket show PATH"),
        (["show", "none.json"], "none.json cannot be read"),
        (["show", "folder"], "holds no ticket"),
        (["show", "whole"], "the model in whole is whole"),
        (["diff", "a.json", "other.json"], "different models: the model type is bert in one and roberta in the other"),
    ],
)
def test_what_holds_no_ticket_is_refused(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.chdir(tmp_path)
    by_hand().save("a.json")
    Ticket(by_hand().heads, by_hand().neurons, "roberta", 4, 64).save("other.json")
    Path("folder").mkdir()
    earlybert.save(tiny_model(), "whole")
    assert main(["ticket", *words]) == 2
    assert sentence in capsys.readouterr().err
