"""What a YAML file may say of a comparison, and the settings that each run has by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from earlybert.config.checks import BadSetting
from earlybert.config.finetune import Finetune
from earlybert.config.values import typed
from earlybert.recipes.comparison.comparison import Comparison


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["dense", "tiket"]}, "unknown method 'tiket'; did you mean ticket"),
        ({"tasks": ["ssst2"]}, "unknown task 'ssst2'; did you mean sst2"),
        ({"seeds": [1, 1]}, "seeds are repeated (1)"),
        ({"seeds": []}, "a comparison needs seeds"),
        ({"methods": ["dense", "dense"]}, "method 'dense' is named twice"),
        ({"methods": ["dense", "inverted"]}, "inverted takes something from a ticket"),
        (
            {"methods": {"dense": None, "x": {"method": "inverted", "like": "tikcet"}, "ticket": None}},
            "did you mean ticket",
        ),
        ({"methods": {"dense": {"lrr": 3}}}, "unknown setting 'lrr'; did you mean lr"),
        ({"methods": {"dense": {"lr": "much"}}}, "lr must be a number, got 'much'"),
        ({"methods": {"A b": {"method": "dense"}, "a-b": {"method": "dense"}}}, "make the same folder"),
        ({"methods": {"dense": {"dense_epochs": -1}}}, "dense_epochs must be above 0"),
        ({"methods": {"dense": {"tune": {"lr": 1e-4}}}}, "tune of dense must hold lists"),
        ({"methods": {"dense": {"tune": {"lr": ["much"]}}}}, "lr must be a number, got 'much'"),
        ({"margin": float("inf")}, "margin must be at least 0"),
        ({"methods": {"dense": {"method": ["dense"]}}}, "unknown method"),
        ({"methods": {"dense": {"validation_rows": 7}}}, "validation_rows is one for all rows"),
        ({"methods": {"dense": {"seed": 7}}}, "seed is one for all rows"),
        ({"methods": {"dense": {"tune": {"method": ["ticket"]}}}}, "make another row for another method"),
        ({"seeds": [1, -5]}, "seed must be"),
        ({"search_epochs": float("inf")}, "search_epochs must be"),
        ({"margin": -1}, "margin must be at least 0"),
        ({"times": "no"}, "times must be true or false"),
        ({"methods": {"dense": {"train_rows": 60}}}, "train_rows is one for all rows of a comparison"),
        ({"methods": {"dense": {"text": "review"}}}, "text is one for all rows of a comparison"),
        ({"methods": {"random": {"like": "dense"}}}, "random takes nothing from another row: leave its like out"),
        ({"tasks": {"sst2": {"tune": {"lr": [1e-4]}}}}, "tune of sst2 would mean nothing; say it in a row"),
        ({"tasks": {"sst2": {"method": "random"}}}, "method of sst2 would mean nothing"),
        ({"seed": 3}, "seed of all rows would mean nothing"),
        (
            {"methods": {"dense": None, "dense_same_flops": {"like": "dense"}}},
            "dense_same_flops cannot be like dense, a row of method dense: it has no ticket of its own",
        ),
        (
            {"methods": {"layerdrop": None, "dense_same_time": {"like": "layerdrop"}}},
            "dense_same_time cannot be like layerdrop, a row of method layerdrop",
        ),
        (
            {"methods": {"dense_same_time": {"like": "best"}, "best": {"recipe": "best", "cuts": 2}}},
            "dense_same_time cannot take the time of best: it has several cuts; use dense_same_flops",
        ),
        (
            {"methods": {"dense_same_time": {"like": "mlm_search"}, "mlm_search": {}}},
            "it has a search on masked words",
        ),
        ({"jobs": -1}, "jobs must be at least 0"),
        ({"epochz": 2}, "unknown setting 'epochz'; did you mean epochs"),
    ],
)
def test_bad_input_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    good = {"tasks": ["sst2"], "methods": ["dense", "ticket"], "seeds": [1]}
    Comparison.of(good)
    with pytest.raises(BadSetting, match=said.replace("(", r"\(").replace(")", r"\)")):
        Comparison.of({**good, **changes})


def test_yaml_values_become_what_settings_want() -> None:
    assert typed({"lr": "5e-5", "heads": 4, "epochs": 2, "task": None, "weights": "keep"}, Finetune) == {
        "lr": 5e-5,
        "heads": 4,
        "epochs": 2.0,
        "task": None,
        "weights": "keep",
    }
    with pytest.raises(BadSetting, match=r"batch_size must be a whole number, got 2\.5"):
        typed({"batch_size": 2.5}, Finetune)
    with pytest.raises(BadSetting, match="unknown weights 'kept'; did you mean keep"):
        typed({"weights": "kept"}, Finetune)


def test_what_is_like_a_ticket_is_trained_as_that_is() -> None:
    """It differs in its units alone."""
    of_ticket = {
        "method": "ticket",
        "lr": 1e-3,
        "epochs": 4,
        "warmup": 0.1,
        "heads": 2,
        "weights": "keep",
        "match": 1.0,
    }
    like = {name: {"method": name, "like": "half"} for name in ("random_same_widths", "uniform", "inverted")}
    more = {"uniform": {**like["uniform"], "lr": 2e-3}}
    comparison = Comparison.of({"tasks": ["sst2"], "methods": {"half": of_ticket, **like, **more}, "seeds": [1]})
    for row in like:
        found = comparison.settings_of("sst2", row, 1)
        assert found["lr"] == (2e-3 if row == "uniform" else 1e-3)
        assert (found["epochs"], found["warmup"], found["heads"]) == (4, 0.1, 2)
        assert {"weights", "match"}.isdisjoint(found)


@pytest.mark.parametrize("method", ["layerdrop", "layerdrop_trained", "imp"])
def test_the_rival_of_what_is_trained_as_dense_has_its_learning_rate(method: str) -> None:
    rows: dict[str, Any] = {method: {"tune": {"dense_lr": [1e-3, 2e-3]}}}
    rows |= {"rival": {"method": "dense_same_flops", "like": method}}
    rows |= {"other": {**rows["rival"], "lr": 9e-3}}
    comparison = Comparison.of({"tasks": ["sst2"], "methods": rows, "seeds": [1], "lr": 5e-3})
    assert comparison.settings_of("sst2", "rival", 1)["lr"] == Finetune.dense_lr
    comparison = replace(comparison, chosen={method: {"sst2": {"dense_lr": 2e-3}}})
    assert comparison.settings_of("sst2", "rival", 1)["lr"] == 2e-3
    assert comparison.settings_of("sst2", "other", 1)["lr"] == 9e-3
