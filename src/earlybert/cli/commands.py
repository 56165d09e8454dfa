"""Every command: what it takes, and the recipe it calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..config.checks import BadSetting
from ..config.finetune import PARTS, Drawing, Finetune, LogMode, Ticketing
from ..config.methods import METHODS
from ..config.prepare import Preparation
from ..config.pretrain import PRETRAIN_PARTS, Pretrain
from ..config.recipe import with_recipe

Given = dict[str, Any]
"""What was said on the command line and in its YAML file, by name with underscores."""


@dataclass(frozen=True)
class Option:
    """An argument of one command that is not a setting of a run."""

    name: str
    help: str
    type: Any = str
    flag: bool = False
    """True when said, without a value."""
    positional: bool = False
    """Said without its name, and may be left out. Its help begins with the word that the usage shows."""
    count: str = "?"
    """Of values of a positional one: `?` or `*`."""


@dataclass(frozen=True)
class Command:
    """One command."""

    about: str
    run: Callable[[Given], Mapping[str, Any] | None]
    """Returns what the last line of `--log json` says of the result."""
    options: tuple[Option, ...] = ()
    parts: tuple[type, ...] = ()
    """Settings it takes, as groups of `config`."""
    on_run: bool = False
    """Whether it works on a run folder, its first argument; then settings default to the run's."""
    yaml: bool = True
    """Whether a YAML file may hold its settings."""
    check: Callable[[Given], object] = lambda given: None
    """Refuses settings out of range without torch."""


OUTPUT = Option("output", "run folder (default: runs/<data>-<date>)")
LOG = Option(
    "log",
    "what to show: bars, plain lines, JSON lines for a program, or nothing but errors (quiet); auto is bars on a "
    "terminal and plain elsewhere [auto]",
    LogMode,
)
"""Every command has it."""
RESUME = Option("resume", "go on with the run in --output, with its own settings", flag=True)
OFFLINE = Option("offline", "load names from the hub's cache only", flag=True)


def _settings(given: Given, *options: str) -> Given:
    """What is left when the command's own options are taken away."""
    return {name: value for name, value in given.items() if name not in options}


def _check_run(given: Given) -> None:
    Finetune(**with_recipe(_settings(given, "output", "resume", "compare")))


def _result(run: Any) -> Given:
    """A run folder and the metrics in it, if it has come so far."""
    return {"run": str(run.path), **({"metrics": run.read_metrics()} if run.metrics.exists() else {})}


def _finetune(given: Given) -> Given:
    from ..recipes import finetune as recipe

    settings = _settings(given, "output", "resume", "compare")
    start = recipe.start(settings, output=given.get("output"), resume=given.get("resume", False))
    return _result(recipe.finetune(start, compare=given.get("compare", False)))


def _search(given: Given) -> Given:
    from ..recipes import finetune as recipe

    settings = _settings(given, "output", "resume")
    return _result(recipe.search(recipe.start(settings, output=given.get("output"), resume=given.get("resume", False))))


def _draw(given: Given) -> Given:
    from ..recipes.draw import draw

    run = draw(given["run"], settings=_settings(given, "run", "into"), into=given.get("into"))
    return {"run": str(run.path)}


def _train(given: Given) -> Given:
    from ..recipes import finetune as recipe

    return _result(recipe.train(given["run"], settings=_settings(given, "run")))


def _evaluate(given: Given) -> Given:
    from ..recipes import finetune as recipe

    return {"run": given["run"], "score": recipe.evaluate(given["run"])}


def _predict(given: Given) -> None:
    from ..recipes import predict as recipe

    (recipe.predict_file if "file" in given else recipe.predict)(given["run"], **_settings(given, "run"))


def _check_predict(given: Given) -> None:
    if "file" in given and "split" in given:
        raise BadSetting("give either --split or --file, not both.")
    if "file" not in given and ("text" in given or "text_pair" in given):
        raise BadSetting("--text and --text-pair are columns of --file; give it, too.")


def _report(given: Given) -> Given:
    from ..recipes.report import report

    figures = given.get("figures")
    page = report(
        [Path(run) for run in given.get("runs") or []],
        output=Path(given["output"]) if "output" in given else None,
        figures=Path(figures) if figures else None,
    )
    return {"report": str(page)}


def _export(given: Given) -> Given:
    from ..recipes.export import export

    return {"file": str(export(given["model_or_run"], to=given["to"], output=given["output"]))}


def _check_export(given: Given) -> None:
    missing = [f"--{name}" for name in ("to", "output") if name not in given]
    if "model_or_run" not in given or missing:
        raise BadSetting(
            "say what to export, as what, and where to: earlybert export RUN --to onnx|torch|expanded|model "
            "--output FOLDER."
        )


def _ticket(given: Given) -> None:
    from ..recipes.tickets import look

    look(given.get("words") or [], as_json=given.get("json", False))


def _compare(given: Given) -> Given | None:
    from ..recipes.display import say

    if given.get("list"):
        width = max(map(len, METHODS))
        say("\n".join(f"{name:<{width}}  {method.about}" for name, method in METHODS.items()))
        return None
    from ..recipes.compare import RESULT, compare
    from ..recipes.comparison.comparison import Comparison

    comparison = Comparison.of(_settings(given, "output", "list", "check"))
    if given.get("check"):
        from ..recipes.comparison.forecast import forecast
        from ..recipes.display import display

        display.table(forecast(comparison))
        return None
    folder = Path(given.get("output", "runs/compare"))
    compare(comparison, folder)
    return {"folder": str(folder), **json.loads((folder / RESULT).read_bytes())}


def _reproduce(given: Given) -> Given | None:
    from ..recipes.display import say
    from ..recipes.reproduce import experiment

    if given.get("list"):
        width = max(map(len, experiment.names()))
        say("\n".join(f"{name:<{width}}  {experiment.read(name)['caption']}" for name in experiment.names()))
        return None
    from ..recipes.reproduce.run import reproduce

    if "results" in given:
        from ..recipes.reproduce.page import write_page

        say(f"written: {write_page(Path(given.get('output', '.')), Path(given['results']))}")
        return None
    wanted = list(given.get("names") or [])
    if not wanted:
        raise BadSetting("say which: earlybert reproduce NAME..., all for every one; --list names them.")
    records = reproduce(
        wanted,
        given.get("scale", "small"),
        Path(given.get("output", "runs/reproduce")),
        _settings(given, "names", "scale", "output", "check", "list", "force"),
        only_check=given.get("check", False),
        force=given.get("force", False),
    )
    return {"tables": [asdict(record) for record in records]}


def _advise(given: Given) -> Given:
    from ..recipes.advise import advise

    return {"estimate": asdict(advise(_advised(given), seconds=given.get("seconds", 20.0)))}


def _prepare(given: Given) -> None:
    from ..recipes.prepare import prepare

    names = {field.name for field in fields(Preparation)}
    prepare(Preparation(**{name: given[name] for name in names & given.keys()}), **_settings(given, *names))


def _pretrain(given: Given) -> Given | None:
    settings = _settings(given, "output", "resume", "check")
    if given.get("check"):
        if given.get("resume"):
            raise BadSetting("--check is about settings, not about a run that has begun; leave --resume out.")
        from ..recipes.display import display
        from ..recipes.pretraining.forecast import forecast

        display.table(forecast(Pretrain(**settings)))
        return None
    from ..recipes import pretrain as recipe

    start = recipe.start(settings, output=given.get("output"), resume=given.get("resume", False))
    return _result(recipe.pretrain(start))


def _advised(given: Given) -> Given:
    """`MODEL DATA` as settings: data is the name of a task, or a file."""
    settings = _settings(given, "seconds", "of_model", "of_data")
    if "of_model" in given:
        settings["model"] = given["of_model"]
    if "of_data" in given:
        settings["train_file" if Path(given["of_data"]).suffix else "task"] = given["of_data"]
    return settings


Names = dict[str, dict[str, Any] | None] | list[str]

COMMANDS = {
    "finetune": Command(
        "search, draw and train in one go",
        _finetune,
        (
            OUTPUT,
            RESUME,
            Option("compare", "also train the dense model, and the dense model stopped at the same cost", flag=True),
        ),
        PARTS,
        check=_check_run,
    ),
    "search": Command(
        "stage 1: find out which heads and neurons matter", _search, (OUTPUT, RESUME), PARTS, check=_check_run
    ),
    "draw": Command(
        "stage 2: draw a ticket from the scores of a run",
        _draw,
        (Option("into", "new run folder for this ticket, with a copy of the search"),),
        (Drawing,),
        on_run=True,
    ),
    "train": Command("stage 3: train the ticket of a run", _train, (), (Ticketing,), on_run=True),
    "evaluate": Command("score the trained model of a run on its validation data", _evaluate, on_run=True, yaml=False),
    "predict": Command(
        "write a run's predictions: of test rows as GLUE and SQuAD want them, or of a file of new rows",
        _predict,
        (
            Option("split", "rows to predict [test]", Literal["test", "validation"]),
            Option("file", "your own new rows (.csv, .tsv or .jsonl), which need no labels, instead of a split"),
            Option("text", "column of the text in --file [the run's]"),
            Option("text_pair", "column of the second text in --file [the run's]"),
            Option("output", "folder for the files [submission in the run folder]"),
        ),
        on_run=True,
        yaml=False,
        check=_check_predict,
    ),
    "report": Command(
        "one HTML page for a run, or for several side by side",
        _report,
        (
            Option("runs", "RUN...: run folders, finished or not", positional=True, count="*"),
            Option("output", "the page [report.html in the first run folder; ./report.html for several]"),
            Option("figures", "folder for every figure as SVG and PDF, fit for a paper"),
        ),
        yaml=False,
    ),
    "export": Command(
        "write a model as ONNX, torch.export program or stock checkpoint of full size; or that of a stopped run",
        _export,
        (
            Option("model_or_run", "MODEL: a run folder that is trained, or a model folder", positional=True),
            Option(
                "to",
                "onnx, torch or expanded; model for the last checkpoint of a pre-training run that was stopped",
                Literal["onnx", "torch", "expanded", "model"],
            ),
            Option("output", "folder to be made"),
        ),
        yaml=False,
        check=_check_export,
    ),
    "ticket": Command(
        "show which heads and neurons a ticket keeps, or how two tickets differ",
        _ticket,
        (
            Option(
                "words",
                "show PATH | diff A B: each a ticket.json, a run folder or a saved model",
                positional=True,
                count="*",
            ),
            Option("json", "print JSON instead of tables", flag=True),
        ),
        yaml=False,
    ),
    "compare": Command(
        "methods x tasks x seeds, one honest table",
        _compare,
        (
            Option("tasks", "tasks, or tasks with settings of their own", Names),
            Option("methods", "rows of the table: methods, or names with settings (method: ...)", Names),
            Option("seeds", "paired seeds, such as [1, 2, 3]", list[int]),
            Option("jobs", "runs at once, 0 for as many as there is room for [1]", int),
            Option("times", "false where other work runs on the machine: tables then tell no times [true]", bool),
            Option("margin", "points by which a method may be worse and count as not inferior [0.3]", float),
            Option("models", "weights that stay on disk: of the first seed, or all [first]", Literal["first", "all"]),
            Option("output", "folder of the comparison; run again, it goes on [runs/compare]"),
            Option("check", "say what it would take, and run nothing", flag=True),
            Option("list", "list the methods and end", flag=True),
        ),
        PARTS,
    ),
    "reproduce": Command(
        "a table or figure of the paper beside the paper's numbers, and which of its claims held",
        _reproduce,
        (
            Option("names", "NAME: tables and figures, or all", positional=True, count="*"),
            Option("scale", "small runs on two cores; paper is the exact setting [small]", Literal["paper", "small"]),
            Option("output", "folder of the results; run again, it goes on [runs/reproduce]"),
            Option("data_dir", "folder with <task>/train.jsonl.gz; the hub when not given"),
            Option("corpus", "folder of a prepared corpus, for the tables of pre-training"),
            Option("text", "text files to prepare it from, where that folder is still empty", list[str]),
            Option("seeds", "paired seeds instead of the file's", list[int]),
            Option("jobs", "runs at once, 0 for as many as there is room for [1]", int),
            OFFLINE,
            Option("results", "folder of results: write reproduction.md of them into --output, and end"),
            Option("check", "say what it would take, and run nothing", flag=True),
            Option("force", "begin without a GPU what needs one, too", flag=True),
            Option("list", "list the tables and figures and end", flag=True),
        ),
        yaml=False,
    ),
    "advise": Command(
        "time both steps on your machine and data, and say what a ticket would save",
        _advise,
        (
            Option("of_model", "MODEL: a folder, a hub name, or minilm", positional=True),
            Option("of_data", "DATA: the name of a task, or your own .csv, .tsv or .jsonl file", positional=True),
            Option("seconds", "how long to time [20]", float),
        ),
        PARTS,
        check=lambda given: Finetune(**with_recipe(_advised(given))),
    ),
    "prepare": Command(
        "turn text files into token shards for pre-training",
        _prepare,
        (
            Option("files", "FILES: text or JSON lines, packed as .gz or .xz or not", positional=True, count="*"),
            Option("output", "folder for the corpus"),
            Option("dataset", "data set of the hub to stream, instead of files"),
            Option("dataset_config", "its configuration, where it has several"),
            Option("split", "which part of it [train]"),
            Option("workers", "processes that tokenise [one a core]", int),
            Option("resume", "go on with an unfinished corpus in --output", flag=True),
            OFFLINE,
        ),
        (Preparation,),
    ),
    "pretrain": Command(
        "train a BERT from random weights on a prepared corpus",
        _pretrain,
        (OUTPUT, RESUME, Option("check", "say what it would take, and run nothing; needs no corpus", flag=True)),
        PRETRAIN_PARTS,
        check=lambda given: Pretrain(**_settings(given, "output", "resume", "check")),
    ),
}
