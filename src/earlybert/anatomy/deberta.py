"""DeBERTa-v2 and v3: heads meet the content and, through projections of their own, relative positions."""

from typing import Any

from .family import Family


def _position_flops(attention: Any) -> int:
    if not attention.relative_attention:
        return 0
    kinds = sum(kind in attention.pos_att_type for kind in ("c2p", "p2c"))
    return 2 * kinds * 2 * attention.pos_ebd_size * attention.all_head_size


DEBERTA = Family(
    model_types=("deberta-v2",),
    layers="encoder.layer",
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
    more=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
    output="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
    attention="attention.self",
    # It divides features by this number instead of by the head size: unchanged, it would be silently wrong.
    head_count=("num_attention_heads",),
    head_width=("all_head_size",),
    position_flops=_position_flops,
    padded="its attention is its own and takes positions from the batch",
)
