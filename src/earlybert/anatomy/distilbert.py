"""DistilBERT."""

from .family import Family

DISTILBERT = Family(
    model_types=("distilbert",),
    layers="transformer.layer",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    output="attention.out_lin",
    up="ffn.lin1",
    down="ffn.lin2",
    attention="attention",
    head_count=("n_heads",),
    head_width=("dim",),
)
