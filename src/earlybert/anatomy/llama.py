"""Llama and the models that kept its layout. A head of a ticket is a key and value head with all its query heads."""

from .family import Family

LLAMA = Family(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    layers="layers",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    attention="self_attn",
    head_size="head_dim",
    group="num_key_value_groups",
    padded="its attention is causal",
)
