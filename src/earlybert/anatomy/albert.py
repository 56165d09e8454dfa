"""ALBERT: few layers (mostly one), each run many times; a ticket has one entry for each that is stored."""

from .family import Family

ALBERT = Family(
    model_types=("albert",),
    layers="encoder.albert_layer_groups.*.albert_layers",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    output="attention.dense",
    up="ffn",
    down="ffn_output",
    attention="attention",
    head_count=("num_attention_heads",),
    head_width=("all_head_size",),
)
