"""Write what a trained model says of the rows of a split, as the task's judge reads it, or of a file of new rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from ..anatomy import Refused
from ..tasks import files, glue, load_test, squad
from ..tasks.batches import Chances
from ..tasks.encode import encode
from ..tasks.head import load_tokenizer
from ..tasks.submission import render, render_new, validation
from ..ticket import load
from ..ticket.files import write_atomically
from ..train import evaluate
from ..train.precision import resolve
from .display import say
from .finetuning.bench import Bench
from .machine import refuse_launcher
from .run import Run


def predict(path: str, *, split: Literal["test", "validation"] = "test", output: str | None = None) -> list[Path]:
    """Predict every row of a split with the saved model of a run.

    Args:
        path: A run folder that is trained.
        split: Test rows need no labels.
        output: Folder for the files; `submission` in the run folder when None.

    Returns:
        The files: GLUE's TSV under the names its site asks for, SQuAD's `predictions.json`.

    Raises:
        Refused: The run is not trained, or the split cannot be loaded. Nothing is written.
    """
    run = _trained(path)
    test = load_test(run.config) if split == "test" else {}  # first: it is the likeliest to fail
    bench = Bench.set_up(run.config)
    model = load(run.model).to(bench.device)
    bench.refuse_other_labels(model)
    folder = run.path / "submission" if output is None else Path(output)
    contents: dict[Path, str] = {}
    for name, examples in (test or validation(bench.task, run.config)).items():
        suffix, text = render(bench.task, run.config, bench.predict_on(model, examples))
        contents[folder / f"{name}{suffix}"] = text
        say(f"{folder / name}{suffix}: {len(examples):,} rows")
    for file, text in contents.items():
        write_atomically(file, text.encode())
    return list(contents)


def predict_file(
    path: str, file: str, *, text: str | None = None, text_pair: str | None = None, output: str | None = None
) -> Path:
    """Predict every row of a file with the saved model of a run. The data that it was trained on is not needed.

    Args:
        path: A run folder that is trained.
        file: New rows, `.csv`, `.tsv` or `.jsonl`; it needs no labels.
        text: Column of the (first) text; that of the run when None.
        text_pair: Column of the second text; that of the run when None.
        output: Folder for `predictions-NAME.tsv`, after the file's name; `submission` in the run folder when None.

    Returns:
        The file: row number from 0, class or value, and for classes the probability of that one.

    Raises:
        Refused: The run is not trained, is one on questions, or the file does not fit it. Nothing is written.
    """
    run = _trained(path)
    config = run.config
    if config.task in squad.TASKS:
        raise Refused(f"{path} answers questions, and --file is for classes and values; use --data-dir and --split.")
    known = glue.TASKS.get(config.task or "")
    first, second = (known.columns[0], (*known.columns, None)[1]) if known else (config.text, config.text_pair)
    if text_pair is not None and second is None:
        raise Refused(f"{path} was trained on one text a row; leave --text-pair out.")
    examples = files.unlabelled(file, text=text or first, text_pair=text_pair or second)
    device = Accelerator(cpu=config.device == "cpu").device
    model: Any = load(run.model).to(device)
    rows, cut = encode(examples, load_tokenizer(str(run.model), offline=True), config.max_length)
    for note in files.quoted(file, examples):
        say(f"note: {note}")
    if cut:
        say(f"note: {cut:,} of {len(rows):,} rows are longer than {config.max_length} tokens and are cut.")
    regression = model.config.num_labels == 1
    said = evaluate.predict(
        model,
        rows if regression else Chances.of(rows),
        batch_size=config.batch_size * 2,
        precision="no" if regression else resolve(config.precision, device),
    )
    labels = None if regression else [str(name) for _, name in sorted(model.config.id2label.items())]
    folder = run.path / "submission" if output is None else Path(output)
    name = Path(file).name.removesuffix(".gz")
    target = folder / f"predictions-{Path(name).stem}.tsv"  # beside those of files of other names
    write_atomically(target, render_new(examples.ids or (), said, labels).encode())
    say(f"{target}: {len(examples):,} rows")
    return target


def _trained(path: str) -> Run:
    refuse_launcher("earlybert predict")
    run = Run.open(path)
    if not run.metrics.exists():
        raise Refused(f"{path} is not trained yet; run {run.goes_on} first.")
    return run
