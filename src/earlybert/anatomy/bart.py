"""BART's encoder; the decoder stays whole."""

from .family import Family

BART = Family(
    model_types=("bart",),
    layers="encoder.layers",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.out_proj",
    up="fc1",
    down="fc2",
    attention="self_attn",
    head_size="head_dim",
    head_count=("num_heads",),
    decoder="decoder",
    padded="its decoder reads padded rows",
)
