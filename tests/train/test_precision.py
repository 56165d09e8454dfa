import logging

import pytest
import torch

from earlybert import Refused
from earlybert.train import precision
from earlybert.train.precision import resolve

CPU = torch.device("cpu")


def test_precision_names() -> None:
    assert resolve("no", CPU) == "no"
    assert resolve("auto", CPU) in ("bf16", "no")
    with pytest.raises(Refused):
        resolve("fp16", CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("computes", [True, False])
def test_emulated_bf16_is_told(
    computes: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "_computes_bf16", lambda _: computes)
    with caplog.at_level(logging.WARNING, logger="earlybert"):
        assert resolve("auto", CPU) == ("bf16" if computes else "no")
        assert resolve("no", CPU) == "no"
        assert not caplog.records
        assert resolve("bf16", CPU) == "bf16"  # what was asked for runs
    assert [record.message[:33] for record in caplog.records] == (
        [] if computes else ["this CPU has no bf16 instructions"]
    )
