"""ViT, in the layout of transformers 5 and in the one before."""

from dataclasses import replace

from .family import Family
from .inputs import image

VIT = Family(
    model_types=("vit",),
    layers="layers",
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    output="attention.o_proj",
    up="mlp.fc1",
    down="mlp.fc2",
    attention="attention",
    head_size="head_dim",
    head_count=("num_attention_heads",),
    head_width=("all_head_size",),
    inputs=image,
    padded="images have none",
)

VIT_4 = replace(
    VIT,
    layers="encoder.layer",
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    output="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
    attention="attention.attention",
    head_size="attention_head_size",
)
