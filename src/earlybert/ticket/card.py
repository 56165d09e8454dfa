"""The model card that every saved model carries: `README.md` in the layout of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from torch import nn

from .ticket import Ticket

NAME = "README.md"
TAG = "earlybert"
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMultipleChoice": "multiple-choice",
    "DoubleHeadsModel": None,
    "Model": "feature-extraction",
}
"""Tasks of the hub, by how the name of a model class ends; the first that fits counts."""


def model_card(
    architecture: str, model_type: str, ticket: Ticket | None, *, sections: Sequence[str] = (), **metadata: Any
) -> str:
    """The card's text.

    Args:
        architecture: Name of the model class.
        model_type: `config.model_type`.
        ticket: What was cut; None for a whole model.
        sections: Markdown that goes between what was cut and how to load it: scores, costs.
        **metadata: Fields of `huggingface_hub.ModelCardData`, which win over what is found here.
    """
    pipeline = next((task for ending, task in PIPELINES.items() if architecture.endswith(ending)), None)
    tags = [TAG, model_type, *(["pruned", "lottery-ticket"] if ticket is not None else [])]
    data = ModelCardData(**{"library_name": "transformers", "pipeline_tag": pipeline, "tags": tags, **metadata})
    name = metadata.get("model_name") or f"{architecture}{'' if ticket is None else ', cut'}"
    parts = [f"---\n{data.to_yaml()}\n---", f"# {one_line(name)}", _what(architecture, ticket)]
    if ticket is not None:
        parts.append(_cut(ticket))
    parts += [*sections, _load(ticket), _limits(ticket)]
    return "\n\n".join(parts) + "\n"


def card_of(model: nn.Module, ticket: Ticket | None) -> str:
    """A card that says what the model itself tells."""
    config: Any = model.config
    return model_card(type(model).__name__, str(config.model_type), ticket)


def is_ours(path: Path) -> bool:
    """Whether a card may be replaced: there is none, or it was written here."""
    try:
        return f"\n- {TAG}\n" in path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False


def one_line(text: object) -> str:
    """Text that somebody else wrote, harmless in Markdown: one line, no tags, no table bars."""
    return " ".join(str(text).split()).translate({ord(letter): f"&#{ord(letter)};" for letter in "\\`*_{}[]<>|#"})


def _what(architecture: str, ticket: Ticket | None) -> str:
    if ticket is None:
        return f"A `{architecture}` saved by earlybert; nothing was cut out of it."
    return (
        f"A `{architecture}` made smaller by an early-bird lottery ticket "
        "([Chen et al., ACL 2021](https://aclanthology.org/2021.acl-long.171/)): attention heads and feed-forward "
        "neurons that mattered least were cut out for good."
    )


def _cut(ticket: Ticket) -> str:
    heads, neurons = ticket.layers * ticket.num_heads, ticket.layers * ticket.num_neurons
    lines = [
        "## What was cut",
        "",
        f"{ticket.heads_kept} of {heads} heads and {ticket.neurons_kept:,} of {neurons:,} neurons stay.",
        "",
        "| layer | heads kept | neurons kept |",
        "| ---: | ---: | ---: |",
    ]
    lines += [
        f"| {layer} | {len(kept)} of {ticket.num_heads} | {len(units):,} of {ticket.num_neurons:,} |"
        for layer, (kept, units) in enumerate(zip(ticket.heads, ticket.neurons, strict=True), 1)
    ]
    return "\n".join(lines)


def _load(ticket: Ticket | None) -> str:
    lines = [
        "## How to load it",
        "",
        "```python",
        "import earlybert",
        "from huggingface_hub import snapshot_download",
        "",
        'model = earlybert.load("FOLDER")  # or earlybert.load(snapshot_download("NAME/ON-THE-HUB"))',
        "```",
    ]
    if ticket is not None:
        lines += [
            "",
            "After `import earlybert` the Auto classes load it too; without, they do with `trust_remote_code=True`.",
        ]
    lines += [
        "",
        "It goes to the hub as any model does; the card first, since `push_to_hub` writes a bare one where none is:",
        "",
        "```python",
        "from huggingface_hub import HfApi, ModelCard",
        "",
        'HfApi().create_repo("NAME/ON-THE-HUB", exist_ok=True)',
        'ModelCard.load("FOLDER/README.md").push_to_hub("NAME/ON-THE-HUB")',
        'model.push_to_hub("NAME/ON-THE-HUB")',
        "```",
    ]
    return "\n".join(lines)


def _limits(ticket: Ticket | None) -> str:
    lines = [
        "## Limitations",
        "",
        "- It inherits the limitations, the biases and the licence of the model it was made from.",
    ]
    if ticket is not None:
        lines += [
            "- What was cut was chosen for the data it was searched on; on other data it may have lost more.",
            "- Scores are of one training run; another seed gives another ticket and other scores.",
            "- Whether it is faster depends on the hardware and the kernels; measure it where it is to run.",
        ]
    return "\n".join(lines)
