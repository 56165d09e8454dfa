"""Write what a trained model says of the rows of a split, in the form that the task's own judge reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..anatomy import Refused
from ..tasks import load_test
from ..tasks.submission import render, validation
from ..ticket import load
from ..ticket.files import write_atomically
from .bench import Bench
from .display import say
from .run import Run


def predict(path: str, *, split: Literal["test", "validation"], output: str | None) -> list[Path]:
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
    run = Run.open(path)
    if not run.metrics.exists():
        raise Refused(f"{path} is not trained yet; run earlybert train {path} first.")
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
