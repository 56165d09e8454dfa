"""A model cut up over two processes (gloo, CPU) against a whole one, and what is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from earlybert.anatomy import Refused
from earlybert.train import sharded
from tests.data.conftest import corpus_folder, settings, text_file, tokenizer_folder  # noqa: F401

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_steps_checkpoints_and_scores_are_those_of_a_whole_model(corpus_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """In search and training, eager and fast; see the worker for what is compared."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "tests.train.sharded_worker", str(corpus_folder), str(tmp_path)]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **job, "OMP_NUM_THREADS": "1", "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-5000:]


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
