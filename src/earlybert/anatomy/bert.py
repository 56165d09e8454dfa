"""BERT and the models that kept its layout."""

from dataclasses import replace

from .family import Family

BERT = Family(
    model_types=("bert", "electra"),
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    output="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
    attention="attention.self",
    head_count=("num_attention_heads",),
    head_width=("all_head_size",),
)

ROBERTA = replace(BERT, model_types=("roberta", "xlm-roberta"), after_padding=True)
