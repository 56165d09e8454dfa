"""What graphs let go of when memory is short; nothing here needs a GPU."""

from __future__ import annotations

import pytest
import torch

from earlybert.train.cuda.graphs import Graphs

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def held() -> Graphs:
    """With one graph in it."""
    graphs = Graphs(2, torch.device("cpu"))
    assert graphs.find("a", lambda: "graph of a") is None  # the first time warms up
    assert graphs.find("a", lambda: "graph of a") == "graph of a"
    return graphs


def test_what_goes_takes_its_pool_along() -> None:
    graphs = held()
    graphs._pool = (0, 1)
    graphs.clear()
    assert (len(graphs), graphs._pool) == (0, None)
    assert graphs.find("a", lambda: "graph of a") is None  # new again


@pytest.mark.parametrize("graphs", [held(), Graphs(2, torch.device("cpu"))], ids=["held", "none held"])
def test_work_that_finds_no_memory_is_done_again_without_graphs(
    graphs: Graphs, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[bool] = []

    def work() -> str:
        begun.append(len(graphs) > 0)
        if graphs.limit:
            raise FULL
        return "done"

    if len(graphs) == 0:  # nothing to let go of
        with pytest.raises(torch.OutOfMemoryError):
            graphs.around(work)
        assert (begun, caplog.messages) == ([False], [])
        return
    assert graphs.around(work) == "done"
    assert begun == [True, False]
    assert graphs.find("a", lambda: "graph of a") is None
    (line,) = caplog.messages
    assert line.startswith("CUDA graphs are off, steps will be slower: there is no memory for them.")


def test_other_errors_are_not_swallowed() -> None:
    def work() -> None:
        raise RuntimeError("a shape is wrong")

    with pytest.raises(RuntimeError, match="a shape is wrong"):
        held().around(work)
