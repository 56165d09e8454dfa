"""The same bytes whatever the workers and however often the run was killed; nothing broken is read."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import earlybert as eb
from earlybert.config.checks import BadSetting
from earlybert.config.prepare import Preparation
from earlybert.data import prepare, shards, sources, vocabulary
from earlybert.data.corpus import Corpus
from earlybert.data.seen import Seen, digest
from earlybert.data.tokenise import split
from tests import warm
from tests.corpus import documents


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "CHUNK", 2_000)


def run(path: Path, folder: Path, preparation: Preparation, **options: object) -> dict:
    return prepare.prepare(sources.files([path], column="text", wrong_bytes="refuse"), folder, preparation, **options)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_ids_decode_to_the_text(corpus: Corpus, text_file: Path) -> None:
    """Every document, sentence by sentence, in order; held-out ones by their hash."""
    expected: dict[str, list[str]] = {"train": [], "validation": []}
    for document in text_file.read_text("utf-8").split("\n\n"):
        value = digest(document.strip())
        part = "validation" if value[0] < 0.1 * 2**64 else "train"
        expected[part].append(" ".join(document.lower().split()))
    for part in shards.SPLITS:
        found = []
        for shard in corpus.shards(part):
            for begin, end in zip(shard.documents[:-1], shard.documents[1:], strict=True):
                bounds = shard.sentences[begin : end + 1]
                pieces = [shard.tokens[a:b] for a, b in pairwise(bounds)]
                found.append(" ".join(corpus.tokenizer.decode(piece.tolist()) for piece in pieces))
        assert found == expected[part]
        assert 5 < len(expected["validation"]) < 50
    assert len(corpus.shards("train")) > 4


def test_counts_and_checksums(corpus: Corpus, text_file: Path) -> None:
    manifest = corpus.manifest
    counts = manifest["counts"]
    assert counts["read"] == 240 == counts["train"]["documents"] + counts["validation"]["documents"]
    sentences = sum(len(split(document, "en")) for document in text_file.read_text("utf-8").split("\n\n"))
    assert sentences == counts["train"]["sentences"] + counts["validation"]["sentences"]
    for entry, train in zip(manifest["shards"], corpus.shards("train"), strict=True):
        data = (corpus.folder / entry["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
        assert len(train.tokens) == entry["train"]["tokens"]
        assert train.tokens.dtype == np.uint16


@pytest.mark.slow
def test_three_workers_give_the_bytes_of_one(
    tmp_path: Path, corpus_folder: Path, text_file: Path, preparation: Preparation
) -> None:
    run(text_file, tmp_path / "c", preparation, workers=3)
    assert content(tmp_path / "c") == content(corpus_folder)


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_bytes(
    tmp_path: Path, corpus_folder: Path, text_file: Path, preparation: Preparation
) -> None:
    """Killed between shards, then in the middle of writing one, then left to end."""
    folder = tmp_path / "c"
    (tmp_path / "killed.py").write_text("""
import os, signal, sys
from earlybert.config.prepare import Preparation
from earlybert.data import prepare, shards, sources
from pathlib import Path
prepare.CHUNK = 2_000
path, folder, tokenizer, when, resume = sys.argv[1:]
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if when == "replace":
    calls, real = [], os.replace
    def replace(a, b):
        calls.append(b)
        if str(b).endswith(".safetensors") and len(calls) > 3: die()
        real(a, b)
    os.replace = replace
def observe(tally):
    if when.isdigit() and len(list(folder.glob("0*.safetensors"))) >= int(when): die()
folder = Path(folder)
preparation = Preparation(tokenizer=tokenizer, held_out=0.1, shard_tokens=4_000)
prepare.prepare(sources.files([path], column="text", wrong_bytes="refuse"), folder, preparation, resume=resume == "y", observe=observe)
""")
    for when, resume in (("2", "n"), ("replace", "y"), ("end", "y")):
        arguments = [str(text_file), str(folder), str(preparation.tokenizer), when, resume]
        done = warm.Process(tmp_path / "killed.py", *arguments).finish()
        assert done.returncode == (0 if when == "end" else -9), done.stderr
        if when != "end":
            assert 2 <= len(list(folder.glob("0*.safetensors"))) < len(list(corpus_folder.glob("0*.safetensors")))
            with pytest.raises(eb.Refused, match="holds no prepared corpus"):
                Corpus(folder)
            with pytest.raises(eb.Refused, match="--resume"):
                run(text_file, folder, preparation)
    assert content(folder) == content(corpus_folder)


class Stopped(Exception):
    pass


def stopped(path: Path, folder: Path, preparation: Preparation) -> None:
    """A run that ends behind its second shard."""

    def stop(_: object) -> None:
        if len(list(folder.glob("0*.safetensors"))) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(path, folder, preparation, observe=stop)


def test_what_was_begun_otherwise_is_not_gone_on_with(
    tmp_path: Path, text_file: Path, preparation: Preparation
) -> None:
    folder = tmp_path / "c"
    stopped(text_file, folder, preparation)
    with pytest.raises(eb.Refused, match="begun with another --held-out"):
        run(text_file, folder, replace(preparation, held_out=0.2), resume=True)
    longer = tmp_path / text_file.name
    longer.write_text(text_file.read_text("utf-8") + "\n\nMore.", "utf-8")
    with pytest.raises(eb.Refused, match="begun with other text files; give the same again"):
        run(longer, folder, preparation, resume=True)
    first = folder / "00000.safetensors"
    first.write_bytes(first.read_bytes()[:-1] + b"\x01")
    with pytest.raises(eb.Refused, match=r"00000\.safetensors is not what the manifest says"):
        run(text_file, folder, preparation, resume=True)


def test_duplicates_are_dropped_also_over_a_resume(tmp_path: Path, preparation: Preparation) -> None:
    texts = documents(60)
    path = tmp_path / "t.txt"
    path.write_text("\n\n".join([*texts, texts[3], "   " + texts[50].replace("\n", " \n"), *texts[:5]]), "utf-8")
    folder = tmp_path / "c"
    stopped(path, folder, preparation)
    manifest = run(path, folder, preparation, resume=True)
    assert (manifest["counts"]["read"], manifest["counts"]["duplicates"]) == (67, 7)
    assert manifest["counts"]["train"]["documents"] + manifest["counts"]["validation"]["documents"] == 60


def test_duplicates_behind_the_last_shard_are_counted(tmp_path: Path, preparation: Preparation) -> None:
    """Every chunk a shard, so that nothing but repetitions is left for the end."""
    texts = documents(20)
    path = tmp_path / "t.txt"
    path.write_text("\n\n".join(texts * 3), "utf-8")
    counts = run(path, tmp_path / "c", replace(preparation, shard_tokens=1, held_out=0))["counts"]
    assert (counts["read"], counts["duplicates"], counts["train"]["documents"]) == (60, 40, 20)


@pytest.mark.parametrize("workers", [1, 2])
def test_documents_without_tokens_are_counted_alike_over_a_resume(
    tmp_path: Path, preparation: Preparation, workers: int
) -> None:
    """No shard remembers them; one that comes again counts as empty, and not as a duplicate, either way."""
    texts, blank = documents(60), "\u200b\u200b"
    path = tmp_path / "t.txt"
    path.write_text("\n\n".join([blank, *texts[:30], blank, *texts[30:], blank, texts[2], blank]), "utf-8")
    whole = run(path, tmp_path / "whole", preparation, workers=workers)
    stopped(path, tmp_path / "c", preparation)
    assert run(path, tmp_path / "c", preparation, workers=workers, resume=True) == whole
    assert (whole["counts"]["empty"], whole["counts"]["duplicates"]) == (4, 1)


def test_half_written_files_of_a_killed_run_are_removed(
    tmp_path: Path, text_file: Path, preparation: Preparation, corpus_folder: Path
) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for name in (".00000.safetensors.x1y2.half", ".progress.json.abc.half"):
        (folder / name).write_bytes(b"half")
    run(text_file, folder, preparation)
    assert content(folder) == content(corpus_folder)


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_with_a_sentence(
    tmp_path: Path, corpus_folder: Path, text_file: Path, preparation: Preparation
) -> None:
    def kill(_: object) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(eb.Refused, match="a worker process was killed"):
        run(text_file, tmp_path / "c", preparation, workers=2, observe=kill)
    run(text_file, tmp_path / "c", preparation, resume=True)
    assert content(tmp_path / "c") == content(corpus_folder)


def test_seen_is_a_set() -> None:
    """Against Python's, through several doublings, with digests that share a place."""
    seen, reference = Seen(), {(0, 0)}
    for number in range(20_000):
        entry = (number % 9_001 * 0x9E3779B97F4A7C15 % 2**64, number % 3)
        if entry == (0, 0):  # marks a free place; as a digest it has probability 2^-128
            continue
        assert seen.add(entry) == (entry not in reference)
        reference.add(entry)
    assert len(seen) == len(reference) - 1


def test_wrong_bytes_and_documents_without_tokens_are_counted(tmp_path: Path, preparation: Preparation) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("\n\n".join(documents(30)).encode() + b"\n\nCaf\xe9.\n\n\xe2\x80\x8b\xe2\x80\x8b\n\n" + b"Kalo.")
    found = sources.files([path], column="text", wrong_bytes="skip")
    counts = prepare.prepare(found, tmp_path / "c", preparation)["counts"]
    assert (counts["read"], counts["wrong_bytes"], counts["empty"]) == (33, 1, 1)
    assert counts["train"]["documents"] + counts["validation"]["documents"] == 31


def test_special_tokens_in_the_text_stay_text(tmp_path: Path, preparation: Preparation) -> None:
    path = tmp_path / "t.txt"
    path.write_text("Kalo [MASK] miren [SEP] tos.", "utf-8")
    run(path, tmp_path / "c", replace(preparation, held_out=0.0))
    corpus = Corpus(tmp_path / "c")
    assert not set(corpus.shards("train")[0].tokens.tolist()) & {corpus.words.mask, corpus.words.sep, corpus.words.cls}


def test_a_changed_corpus_is_refused(tmp_path: Path, corpus_folder: Path, tiny_tokenizer: object) -> None:
    def copy() -> Path:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        return Path(shutil.copytree(corpus_folder, tmp_path / "c"))

    folder = copy()
    shard = folder / "00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(eb.Refused, match=r"00001\.safetensors is not what .* \(checksum\); delete \S*/c and prepare"):
        Corpus(folder)
    Corpus(folder, checksum=False)  # the same size
    shard.write_bytes(data[:-1])
    with pytest.raises(eb.Refused, match=r"00001\.safetensors"):
        Corpus(folder, checksum=False)
    shard.unlink()
    with pytest.raises(eb.Refused, match=r"00001\.safetensors cannot be read"):
        Corpus(folder)
    folder = copy()
    (folder / "manifest.json").write_text('{"format": "earlybert-corpus-1"')
    with pytest.raises(eb.Refused, match="is broken"):
        Corpus(folder)
    manifest = json.loads((corpus_folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": "earlybert-corpus-0"}))
    with pytest.raises(eb.Refused, match="another version"):
        Corpus(folder)
    folder = copy()
    tiny_tokenizer.save_pretrained(folder / "tokenizer")  # type: ignore[attr-defined]
    with pytest.raises(eb.Refused, match="made by another tokenizer"):
        Corpus(folder)


def test_a_full_disk_keeps_what_was_there(
    tmp_path: Path, text_file: Path, preparation: Preparation, monkeypatch: pytest.MonkeyPatch, corpus_folder: Path
) -> None:
    folder = tmp_path / "c"
    real, calls = shards.write_atomically, []

    def full(path: Path, what: bytes) -> None:
        calls.append(path)
        if len(calls) > 4:
            raise eb.Refused("No space left on device")
        real(path, what)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_atomically", full)
        with pytest.raises(eb.Refused, match="No space left"):
            run(text_file, folder, preparation)
    run(text_file, folder, preparation, resume=True)
    assert content(folder) == content(corpus_folder)


def test_folders_and_settings_that_do_not_fit_are_refused(
    tmp_path: Path, corpus_folder: Path, text_file: Path, preparation: Preparation, model_folder: Path
) -> None:
    with pytest.raises(eb.Refused, match="already holds a prepared corpus"):
        run(text_file, corpus_folder, preparation)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(eb.Refused, match="is not empty"):
        run(text_file, tmp_path / "full", preparation)
    with pytest.raises(BadSetting, match="held_out must be between"):
        replace(preparation, held_out=0.9)
    with pytest.raises(eb.Refused, match="cannot be loaded"):
        run(text_file, tmp_path / "a", replace(preparation, tokenizer=str(tmp_path / "full")))
    about = json.loads((model_folder / "tokenizer_config.json").read_text())
    shutil.copytree(model_folder, tmp_path / "m")
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({**about, "mask_token": None}))
    with pytest.raises(eb.Refused, match="no mask_token"):
        run(text_file, tmp_path / "a", replace(preparation, tokenizer=str(tmp_path / "m")))


@pytest.mark.slow
def test_a_trained_vocabulary_is_the_same_in_every_process(tmp_path: Path, text_file: Path) -> None:
    """Hash tables differ from process to process, and threads race."""
    script = (
        "import sys; from pathlib import Path; from earlybert.data import vocabulary; "
        "text = Path(sys.argv[1]).read_text('utf-8').split('\\n\\n'); "
        "vocabulary.train(lambda: text, sys.argv[2], size=200, lowercase=True)"
    )
    for number in range(2):
        subprocess.run([sys.executable, "-c", script, str(text_file), str(tmp_path / str(number))], check=True)
    text = text_file.read_text("utf-8").split("\n\n")
    vocabulary.train(lambda: text, tmp_path / "2", size=200, lowercase=True)
    assert content(tmp_path / "0") == content(tmp_path / "1") == content(tmp_path / "2")
    tokenizer = vocabulary.load(tmp_path / "0")
    assert len(tokenizer) == 200
    ids = tokenizer("Kalo mi?")["input_ids"]
    assert tokenizer.decode(ids) == "[CLS] kalo mi? [SEP]"
    assert ids[0] == tokenizer.cls_token_id


def test_a_vocabulary_smaller_than_the_alphabet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(eb.Refused, match="single characters"):
        vocabulary.train(lambda: ["abcdefghijklmnopqrstuvwxyz"], tmp_path, size=30, lowercase=True)


def test_byte_pairs_keep_their_spaces(tmp_path: Path) -> None:
    """A RoBERTa-like tokenizer: sentences put together again are the paragraph, and words begin where spaces are."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    texts = documents(60)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=400, special_tokens=special, show_progress=False)
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **names).save_pretrained(tmp_path / "bpe")
    path = tmp_path / "t.txt"
    path.write_text("\n\n".join(texts), "utf-8")
    run(path, tmp_path / "c", Preparation(tokenizer=str(tmp_path / "bpe"), held_out=0))
    corpus = Corpus(tmp_path / "c")
    (shard,) = corpus.shards("train")
    bounds = shard.sentences[shard.documents]
    for document, (begin, end) in zip(texts, pairwise(bounds.tolist()), strict=True):
        assert corpus.tokenizer.decode(shard.tokens[begin:end].tolist()) == document.replace("\n", " ")
    begins = corpus.words.begins
    assert begins is not None
    ids = shard.tokens[: int(bounds[1])].astype(int)
    assert begins[ids].sum() == len(texts[0].split()) - 1  # the first word has no space before it
