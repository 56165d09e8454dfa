"""What is asked for by name: the hub is asked once, or never, and what it does not give is one sentence."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from earlybert import Refused
from earlybert.config.finetune import Data
from earlybert.data import hub, vocabulary
from earlybert.data.sources import HubData
from earlybert.tasks import head, load


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that no request reaches; the requests that were tried."""
    import huggingface_hub

    tried: list[str] = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            assert timeout <= 5
            tried.append(url)
            raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    hub._answers.cache_clear()
    yield tried
    hub._answers.cache_clear()


def test_a_hub_that_cannot_be_reached_is_one_sentence_at_once(unreachable: list[str]) -> None:
    began = time.monotonic()
    for task in ("rte", "squad"):
        with pytest.raises(Refused, match="cannot be reached, and it is not in the cache; with local files") as error:
            load(Data(task=task))
        assert "\n" not in str(error.value)
    with pytest.raises(Refused, match="was not found"):
        head.load_config("nobody/has-this-model")
    with pytest.raises(Refused, match=r"nobody/has-this-model cannot be loaded .*cannot be reached"):
        vocabulary.load("nobody/has-this-model")
    with pytest.raises(Refused, match=r"nobody/text/train cannot be streamed .*cannot be reached"):
        HubData("nobody/text", config=None, split="train", column="text")
    assert time.monotonic() - began < 10  # the client alone takes 23 s, for each of them
    assert len(unreachable) == 1  # asked once a process


def test_offline_never_asks_and_leaves_the_flag_as_it_was(
    unreachable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for task in ("rte", "squad"):
        with pytest.raises(Refused, match="not in the cache, and --offline forbids the hub"):
            load(Data(task=task, offline=True))
    with pytest.raises(Refused, match="--offline forbids the hub"):
        head.load_config("nobody/has-this-model", offline=True)
    with pytest.raises(Refused, match="no usable tokenizer"):
        head.load_tokenizer("nobody/has-this-model", offline=True)
    with pytest.raises(Refused, match="--offline forbids the hub"):
        vocabulary.load("nobody/has-this-model", offline=True)
    with pytest.raises(Refused, match="--offline forbids the hub"):
        HubData("nobody/text", config=None, split="train", column="text", offline=True)
    assert unreachable == []
    with hub.hub(offline=True):
        assert constants.is_offline_mode()
    assert not constants.HF_HUB_OFFLINE
