"""Whole files of every kind that is read back, and ways of spoiling them."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import earlybert as eb
from earlybert.data import shards
from earlybert.recipes.run import Run
from earlybert.tasks import files
from earlybert.tasks.predictions import Predictions
from earlybert.train import checkpoint
from earlybert.train.steplog import totals, truncate

NUMBERS = [
    "-1",
    "0",
    "1",
    "1e999",
    "-1e999",
    "NaN",
    "9" * 30,
    "9" * 5000,
    "1e-400",
    "2147483648",
    "true",
    "null",
    "0.5",
]
PIECES = [
    b"",
    b"\x00",
    b"\xff\xfe",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\xed\xa0\x80",
    b"../",
    b"\n",
    b'"',
    b"*a",
    b"&a ",
    b"<<: ",
    b"!!python/object:os.system ",
    b"2001-99-99",
]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    10**12,
    10**40,
    0.5,
    float("inf"),
    float("nan"),
    "",
    "x" * 500,
    "../../etc/passwd",
    "/etc/passwd",
    [],
    [[]],
    {},
    {"a": 1},
    ["a"],
    [[[]]],
]


@dataclass(frozen=True)
class Reader:
    """One kind of file: whole ones, where they lie, and what reads and uses them."""

    whole: list[bytes]
    name: str
    read: Callable[[Path], Any]
    weight: float
    """Its share of the inputs."""


def readers(folder: Path) -> dict[str, Reader]:
    """All of them, from files made here."""
    rng = np.random.default_rng(0)
    ticket = eb.Ticket(((0, 2), (1,)), ((0, 1, 5), (2, 3)), "bert", 4, 8, {"from": "x", "margin": 0.5})
    scores = eb.Scores(*(tuple(torch.rand(2, n)) for n in (4, 8)), "bert", info={"ended": "cap"})
    weights = eb.Scores(*(tuple(torch.rand(2, n)) for n in (4, 8)), "bert", weights={"a.b": torch.rand(3)})
    line = {"stage": "search", "step": 1, "lr": 0.1, "rows": 2, "tokens": 8, "flops": 9, "loss": 0.5, "seconds": 0.1}
    settings = {"task": "sst2", "model": "minilm", "heads": 1, "lr": 1e-4, "weights": "reset", "compile": False}
    rows = [{"text": f"a {n}", "label": n % 2} for n in range(12)]
    return {
        "ticket": Reader([written(folder, ticket.save)], "t.json", eb.Ticket.load, 26),
        "scores": Reader([written(folder, scores.save), written(folder, weights.save)], "s.st", eb.Scores.load, 14),
        "history": Reader([history_file(rng)], "h.bin", use_history, 18),
        "predictions": Reader([written(folder, p.save) for p in predictions()], "p.st", lambda path: Predictions.load(path).score(), 6),
        "checkpoint": Reader([checkpoint_file(folder)], "c.st", use_checkpoint, 8),
        "manifest": Reader([manifest_file()], "manifest.json", lambda path: shards.read_manifest(path.parent), 10),
        "shard": Reader([shard_file(folder, rng)], "00000.safetensors", shards.read, 6),
        "steps": Reader(["".join(json.dumps({**line, "step": n}) + "\n" for n in range(4)).encode()], "steps.jsonl", use_steps, 8),
        "config": Reader([yaml.safe_dump(settings).encode()], "config.yaml", lambda path: Run.open(path.parent), 1),
        "rows": Reader(["".join(json.dumps(row) + "\n" for row in rows).encode()], "rows.jsonl", use_rows, 2),
        "table": Reader(["".join(f"a {n},{n % 2}\n" if n else "text,label\n" for n in range(12)).encode()], "rows.csv", use_rows, 1),
    }  # fmt: skip


def written(folder: Path, save: Callable[[Path], Any]) -> bytes:
    save(folder / "whole")
    return (folder / "whole").read_bytes()


def history_file(rng: np.random.Generator) -> bytes:
    header = json.dumps({"format": "earlybert-history-1", "layers": 2, "heads": 4, "neurons": 8}).encode()
    return header.ljust(255) + b"\n" + rng.random((3, 24), dtype=np.float32).tobytes()


def use_history(path: Path) -> None:
    history = eb.History(path)
    for step in {1, len(history)} if len(history) else ():
        history.coefficients(step, "heads")


def predictions() -> list[Predictions]:
    plain = Predictions(np.array([0, 1, 1]), np.array([0, 1, 0]), ("accuracy", "f1"), 2)
    values = Predictions(np.array([0.5, 1.0]), np.array([0.0, 1.0]), ("pearson",), 1, also={"other": plain})
    extra = {"exact_match": np.array([1.0, 0.0])}
    asked = Predictions(np.array([0.5, 1.0]), np.ones(2), ("f1", "exact_match"), 0, ids=("a", "b"), answers=("", "x"), extra=extra)  # fmt: skip
    return [plain, values, asked]


def checkpoint_file(folder: Path) -> bytes:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return written(folder, lambda path: checkpoint.save(path, model=model, optimizer=optimizer, state={"stage": "train", "step": 1}))  # fmt: skip


def use_checkpoint(path: Path) -> None:
    checkpoint.peek(path)
    model = torch.nn.Linear(3, 2)
    checkpoint.load(path, model=model, optimizer=torch.optim.AdamW(model.parameters()))


def manifest_file() -> bytes:
    counts = {split: {"documents": 1, "sentences": 2, "tokens": 9} for split in shards.SPLITS}
    entry = {"file": "00000.safetensors", "bytes": 9, "sha256": "00", "train": {}, "validation": {}}
    about = {"format": shards.FORMAT, "tokenizer": {"sha256": "00", "tokens": 9}, "dtype": "uint16", "settings": {}, "counts": counts, "shards": [entry]}  # fmt: skip
    return json.dumps(about).encode()


def shard_file(folder: Path, rng: np.random.Generator) -> bytes:
    builder = shards.Builder(np.uint16)
    for split in shards.SPLITS:
        builder.add(split, rng.integers(0, 99, 9, dtype=np.uint16), np.array([4, 5], np.uint32), (1, 2))
    return written(folder, builder.write)


def use_steps(path: Path) -> None:
    totals(path)
    truncate(path, "search", 2)


def use_rows(path: Path) -> None:
    files.load(str(path), validation_file=None, text="text", text_pair=None, label="label", problem="auto", seed=1)


def spoiled(draw: random.Random, whole: bytes) -> bytes:
    """One to three things wrong with a file, in its bytes or in the JSON that it holds."""
    content = whole
    for _ in range(draw.choice((1, 1, 2, 3))):
        content = draw.choice(WAYS)(draw, content)
    return content


def _flip(draw: random.Random, content: bytes) -> bytes:
    place = draw.randrange(len(content) + 1)
    return content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]


def _cut(draw: random.Random, content: bytes) -> bytes:
    begin, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return draw.choice(
        (content[:begin], content[begin:], content[:begin] + content[end:], content[:end] + content[begin:])
    )


def _insert(draw: random.Random, content: bytes) -> bytes:
    place = draw.randrange(len(content) + 1)
    return content[:place] + draw.choice(PIECES) + content[place:]


def _number(draw: random.Random, content: bytes) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not found:
        return content
    match = draw.choice(found)
    return content[: match.start()] + draw.choice(NUMBERS).encode() + content[match.end() :]


def _json(draw: random.Random, content: bytes) -> bytes:
    """Another value somewhere in the JSON; lengths and checksums are made right again, so that it is looked at."""
    size = int.from_bytes(content[:8], "little")
    tensors = 2 <= size <= len(content) - 8
    text, rest = (content[8 : 8 + size], content[8 + size :]) if tensors else (content, b"")
    lines = text.split(b"\n")
    place = draw.randrange(len(lines))
    try:
        value = json.loads(lines[place])
        inner = tensors and draw.random() < 0.6 and "__metadata__" in value
        if inner:
            about = json.loads(value["__metadata__"]["earlybert"])
            value["__metadata__"]["earlybert"] = json.dumps(_changed(draw, about))
        else:
            value = _changed(draw, value)
        if isinstance(value, dict) and "sha256" in value and "heads" in value:
            body = {key: part for key, part in value.items() if key != "sha256"}
            value["sha256"] = hashlib.sha256(
                json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
            ).hexdigest()
        lines[place] = json.dumps(value).encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        return _flip(draw, content)
    text = b"\n".join(lines)
    return len(text).to_bytes(8, "little") + text + rest if tensors else text + rest


def _changed(draw: random.Random, value: Any) -> Any:
    """Another value in place of this one or of one inside it, or one that is gone, or one more."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = draw.choice(list(keys))
    fate = draw.random()
    changed = dict(value) if isinstance(value, dict) else list(value)
    if fate < 0.15:
        del changed[key]
    elif fate < 0.25 and isinstance(changed, dict):
        changed[draw.choice(("x", "__metadata__", "format", "seed"))] = draw.choice(VALUES)
    else:
        changed[key] = _changed(draw, value[key])
    return changed


WAYS = (_flip, _cut, _insert, _number, _number, _json, _json, _json)
