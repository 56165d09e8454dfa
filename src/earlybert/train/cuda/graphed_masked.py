"""The step of pre-training on a GPU: masked-language modelling, packed, in CUDA graphs, with LAMB or AdamW fused."""

from __future__ import annotations

from typing import Any

from ..masked import RaggedMaskedStep
from .graphed import GraphedStep


class GraphedMaskedStep(RaggedMaskedStep, GraphedStep):
    """`RaggedMaskedStep` for CUDA; the update is the same within bf16.

    The number of predictions of a micro-batch is fixed, so that one graph serves all micro-batches of a size. A step is
    any number of them: their gradients are summed in fp32, over all processes too, and applied once. The
    vocabulary projection reads a bf16 copy of the embeddings it is tied to.

    Args:
        graphs: Graphs held at most, one for each multiple of 128 tokens that a micro-batch may have: 64 are enough for
            rows that add up to 8,192.
        *args: As `RaggedMaskedStep`.
        **kwargs: As `GraphedStep`, and `ranks` as `RaggedMaskedStep`.

    Raises:
        Refused: As `RaggedMaskedStep`.
    """

    summed = True

    def __init__(self, *args: Any, graphs: int = 64, **kwargs: Any) -> None:
        super().__init__(*args, graphs=graphs, **kwargs)
