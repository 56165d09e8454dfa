"""A model cut up over two processes (gloo, CPU) against a whole one, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from earlybert.anatomy import Refused
from earlybert.train import sharded
from tests import warm


@pytest.mark.slow
def test_steps_checkpoints_and_scores_are_those_of_a_whole_model(corpus_folder: Path, tmp_path: Path) -> None:
    """In search and training, eager and fast; see the worker for what is compared."""
    ends = [process.finish() for process in warm.pair_of("tests.train.sharded_worker", corpus_folder, tmp_path)]
    assert [end.returncode for end in ends] == [0, 0], "\n".join(end.stderr for end in ends)[-5000:]


def test_one_process_and_an_old_torch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sharded.refuse(2)
    with pytest.raises(Refused, match="several processes"):
        sharded.refuse(1)
    monkeypatch.setattr(sharded, "WANTED", ("what_is_to_come",))
    with pytest.raises(Refused, match="this is " + torch.__version__.partition("+")[0]):
        sharded.refuse(2)


def test_clipping_and_norms_are_those_of_torch() -> None:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in ((5, 3), (7,), (2, 2))]
    for parameter in parameters:
        parameter.grad = 3 * torch.randn_like(parameter)
    mine = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for parameter, other in zip(mine, parameters, strict=True):
        assert other.grad is not None
        parameter.grad = other.grad.clone()
    sharded.clip([*mine, torch.nn.Parameter(torch.zeros(2))], 1.0)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for parameter, other in zip(mine, parameters, strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(parameter.grad, other.grad)
