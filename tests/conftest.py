"""Tiny models, a tiny tokenizer and tiny data that everything can be tested on without a hub."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from earlybert import Ticket

from .corpus import corpus, corpus_folder, preparation, text_file, tokenizer_folder  # noqa: F401  (fixtures)

FAMILIES = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
LAYERS, HEADS, NEURONS, HIDDEN, VOCABULARY = 3, 4, 64, 32, 120
GOOD = ["good", "fine", "great", "lovely", "bright", "happy", "warm", "kind"]
BAD = ["bad", "poor", "awful", "nasty", "dark", "sad", "cold", "cruel"]
PLAIN = [
    "the",
    "a",
    "film",
    "story",
    "actor",
    "scene",
    "night",
    "day",
    "it",
    "was",
    "and",
    "with",
    "very",
    "quite",
    "one",
    "more",
]


def tiny_config(family: str, **changes: Any) -> Any:
    if family == "distilbert":
        sizes = {"dim": HIDDEN, "n_heads": HEADS, "n_layers": LAYERS, "hidden_dim": NEURONS}
    else:
        sizes = {
            "hidden_size": HIDDEN,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "intermediate_size": NEURONS,
        }
        if family == "electra":
            sizes["embedding_size"] = 16
    return AutoConfig.for_model(family, **{"vocab_size": VOCABULARY, "max_position_embeddings": 64, **sizes, **changes})


def tiny_model(family: str = "bert", head: bool = True, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    kind = AutoModelForSequenceClassification if head else AutoModel
    model = kind.from_config(tiny_config(family, **changes))
    # Biases and LayerNorms start at 0 and 1; random ones make every comparison mean something.
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def tiny_batch(rows: int = 4, length: int = 12, seed: int = 0, labels: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=generator)
    attention = torch.ones_like(ids)
    attention[0, length // 2 :] = 0
    batch = {"input_ids": ids, "attention_mask": attention}
    if labels:
        batch["labels"] = torch.randint(0, 2, (rows,), generator=generator)
    return batch


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def word_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


def write_model(folder: Path) -> Path:
    """A pre-trained encoder without a head, as a person would have it on disk."""
    tiny_model("bert", head=False).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def sentiment_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences that are good or bad by their words."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        label = index % 2
        words = draw.choices(PLAIN, k=draw.randint(3, 9)) + draw.choices(GOOD if label else BAD, k=2)
        draw.shuffle(words)
        rows.append({"sentence": " ".join(words), "label": label, "idx": index})
    return rows


def question_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Contexts of plain words with one good or bad word, which is the answer."""
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        words = draw.choices(PLAIN, k=draw.randint(4, 40))
        place = draw.randrange(len(words) + 1)
        words.insert(place, draw.choice(GOOD + BAD))
        begin = len(" ".join([*words[:place], ""]))
        answers = {"text": [words[place]], "answer_start": [begin]}
        rows.append({"id": f"q{seed}-{index}", "context": " ".join(words), "question": "was it?", "answers": answers})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_data(folder: Path) -> Path:
    """SST-2 and SQuAD in the layout of --data-dir, made here."""
    for split, count, seed in (("train", 96, 1), ("validation", 40, 2)):
        write_jsonl(folder / "sst2" / f"{split}.jsonl.gz", sentiment_rows(count, seed))
        write_jsonl(folder / "squad" / f"{split}.jsonl.gz", question_rows(count, seed))
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def uneven(family: str, seed: int = 0) -> Ticket:
    """A ticket with different numbers of heads and neurons in every layer."""
    random = np.random.default_rng(seed)
    heads = [sorted(random.permutation(HEADS)[:count].tolist()) for count in (1, 3, 4)]
    neurons = [sorted(random.permutation(NEURONS)[:count].tolist()) for count in (7, 40, 64)]
    return Ticket(tuple(map(tuple, heads)), tuple(map(tuple, neurons)), family, HEADS, NEURONS)
