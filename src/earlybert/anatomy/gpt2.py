"""GPT-2: fused projections in `Conv1D`, the linear layer with a transposed weight."""

from .family import Family

GPT2 = Family(
    model_types=("gpt2",),
    layers="h",
    query="attn.c_attn",
    key="attn.c_attn",
    value="attn.c_attn",
    output="attn.c_proj",
    up="mlp.c_fc",
    down="mlp.c_proj",
    attention="attn",
    head_size="head_dim",
    head_count=("num_heads",),
    head_width=("split_size",),
    padded="its attention is causal",
)
