"""ModernBERT: query, key and value in one linear, and so are the two halves of its gated feed-forward."""

from .family import Family

MODERNBERT = Family(
    model_types=("modernbert",),
    layers="layers",
    query="attn.Wqkv",
    key="attn.Wqkv",
    value="attn.Wqkv",
    output="attn.Wo",
    up="mlp.Wi",
    gate="mlp.Wi",
    down="mlp.Wo",
    attention="attn",
    head_size="head_dim",
    head_count=("num_heads",),
    head_width=("all_head_size",),
    padded="its local layers see a window of the batch, not of the row",
)
