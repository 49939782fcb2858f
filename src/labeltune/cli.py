"""The command line: each command is a screen over a function; the one place that catches errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from labeltune.errors import LabeltuneError
from labeltune.processes import speaks


class Commands(TyperGroup):
    """Where errors end: what a user can fix is one sentence on standard error, and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command: exit code 0 done, 1 the user can fix it, 2 usage, 130 interrupted."""
        try:
            return super().invoke(ctx)
        except LabeltuneError as error:
            if not speaks():
                raise typer.Exit(error.exit_code) from None
            word = "interrupted" if error.exit_code == 130 else "error"
            err.print(f"[bold red]{word}:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            err.print("interrupted")
            raise typer.Exit(130) from None


app = typer.Typer(
    name="labeltune",
    cls=Commands,
    help="Turn any open decoder LLM into a classifier or a tagger.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Console(), Console(stderr=True)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        sys.stdout.write(f"labeltune {version('labeltune')}\n")
        raise typer.Exit


@app.callback()
def labeltune(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Turn any open decoder LLM into a classifier or a tagger."""


Out = Annotated[Path, typer.Option("--out", help="Folder that the run is written to.")]
Model = Annotated[str | None, typer.Option("--model", help="Backbone: a hub id, a local folder, or `mini`.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Any setting: section.name=value (repeatable).")]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON on standard output.")]
TaskName = Annotated[
    str | None, typer.Option("--task", help="classification, multilabel, regression, ordinal, tagging.")
]
Dev = Annotated[str | None, typer.Option("--dev", help="Dev rows: a file, a hub split, or a fraction of DATA.")]
Test = Annotated[str | None, typer.Option("--test", help="Test rows: a file, a hub split, or a fraction of DATA.")]
OnBadRow = Annotated[
    str | None, typer.Option("--on-bad-row", help="A row that cannot be used: error, skip, or quarantine.")
]


@app.command()
def demo(
    json_: Json = False,
    model: Annotated[str, typer.Option("--model", help="Another backbone than the bundled one.")] = "mini",
) -> None:
    """The main job, offline, on what the package ships: intents and entities of support messages, beside baselines."""
    from labeltune.demo import run_demo
    from labeltune.demo_screen import show_demo

    result = run_demo(model, listen=None if json_ else err.print)
    if json_:
        _print_json(result.as_json())
    else:
        show_demo(result, out)


@app.command()
def train(
    data: Annotated[str | None, typer.Argument(help="Training rows, or a RECIPE.toml.")] = None,
    run: Out = ...,  # type: ignore[assignment]  # typer's way of saying that the option is required
    model: Model = None,
    dev: Dev = None,
    test: Test = None,
    task: TaskName = None,
    sets: Sets = None,
    on_bad_row: OnBadRow = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="A published recipe; DATA is its data set's folder.")
    ] = None,
    init: Annotated[Path | None, typer.Option("--init", help="Start from this run's adapter and head.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    json_: Json = False,
) -> None:
    """Train a classifier or a tagger; --out becomes a run folder."""
    from labeltune.fitting import train as train_run
    from labeltune.screen import Screen

    if recipe is not None:
        flags = {"data.dev": _number_or_name(dev), "data.test": _number_or_name(test), "task": task}
        flags |= {"train.init": None if init is None else str(init)}
        given = {name: value for name, value in flags.items() if value is not None}
        _train_recipe(recipe, data, run, model, given | _settings(sets, on_bad_row), resume, json_)
        return
    file = data if data and data.endswith(".toml") else None
    with Screen(err, quiet=json_ or not speaks()) as screen:
        done = train_run(
            None if file else data,
            config=file,
            out=run,
            model=model,
            dev=_number_or_name(dev),
            test=_number_or_name(test),
            task=task,
            settings=_settings(sets, on_bad_row),
            init=init,
            resume=resume,
            listen=screen.see,
        )
    if json_ and speaks():
        _print_json(done.metrics)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe, printed whole as TOML.")] = None,
    json_: Json = False,
) -> None:
    """The papers' recipes: published score, model, source; with --json also protocol, cost and settings."""
    from labeltune.recipes.book import find
    from labeltune.recipes.book import recipes as all_recipes

    if name is not None:
        sys.stdout.write(find(name).to_toml())
        return
    found = all_recipes().values()
    if json_:
        facts = ("name", "source", "paper", "protocol", "metric", "expected", "cost", "settings")
        _print_json([{fact: getattr(recipe, fact) for fact in facts} for recipe in found])
        return
    table = Table(box=None, header_style="bold")
    table.add_column("recipe", no_wrap=True, min_width=max(len(recipe.name) for recipe in found))
    for column in ("published", "model", "source"):
        table.add_column(column)
    for recipe in found:
        score = "not known" if recipe.expected is None else f"{recipe.metric} {recipe.expected:g}"
        table.add_row(*map(escape, (recipe.name, score, str(recipe.settings["model.name"]), recipe.paper)))
    out.print(table)


@app.command()
def reproduce(
    source: Annotated[
        str, typer.Argument(help="ls-llama, llm-lora-classification, encoders, mask-groups or repetition.")
    ],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the runs and tables.")] = ...,  # type: ignore[assignment]  # required
    only: Annotated[str | None, typer.Option("--only", help="A pattern of names, such as '*conll2003*'.")] = None,
    backbone: Annotated[str | None, typer.Option("--backbone", help="Another backbone for all.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A folder with the data sets [the hub].")] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Trainings per recipe [1 as published, 5 clean].")
    ] = None,
    sets: Sets = None,
    json_: Json = False,
) -> None:
    """Train what is missing of a paper's recipes and write its table beside the published figures."""
    from dataclasses import asdict

    from labeltune.recipes.reproducing import reproduce as reproduce_paper
    from labeltune.recipes.table import to_markdown
    from labeltune.screen import Screen

    with Screen(err, quiet=json_) as screen:
        lines = reproduce_paper(
            source,
            out=folder,
            only=only,
            model=backbone,
            data=data,
            seeds=seeds,
            settings=_settings(sets),
            listen=screen.see,
        )
    if json_:
        _print_json([asdict(line) for line in lines])
    else:
        out.print(escape(to_markdown(source, lines)), highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    data: Annotated[str | None, typer.Option("--data", help="Labelled rows [the dev rows of the training].")] = None,
    sets: Sets = None,
    on_bad_row: OnBadRow = None,
    errors: Annotated[Path | None, typer.Option("--errors", help="Write the rows that came out wrong (JSONL).")] = None,
    min_scores: Annotated[
        list[float] | None,
        typer.Option("--min-score", help="The figures, too, where it abstains below this score (repeatable)."),
    ] = None,
    json_: Json = False,
) -> None:
    """Score a run on labelled rows."""
    from labeltune.predict import evaluate as evaluate_run

    settings = _settings(sets, on_bad_row)
    report = evaluate_run(run, data, settings=settings, errors=errors, min_scores=min_scores or ())
    if json_:
        _print_json(report.as_json())
        return
    from labeltune.evaluate_screen import show_report

    show_report(report, data, errors, out)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    files: Annotated[list[str], typer.Argument(help="Files with rows or one text per line; - reads standard input.")],
    to: Annotated[
        Path | None,
        typer.Option("--out", help="The file to write, by its suffix JSONL, CSV, TSV or Parquet [JSONL, printed]."),
    ] = None,
    min_score: Annotated[float | None, typer.Option("--min-score", help="Abstain below this score.")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Give every label's probability.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted prediction.")] = False,
    backend: Annotated[
        str, typer.Option("--backend", help="torch, or the run's export that computes: onnx, openvino.")
    ] = "torch",
    engine: Annotated[str, typer.Option("--engine", help="local, or ray: shards over the workers of a cluster.")] = (
        "local"
    ),
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Of Ray [one a GPU, else one a machine].")
    ] = None,
    shard_rows: Annotated[
        int, typer.Option("--shard-rows", min=1, help="Rows that are kept together: what a kill can lose.")
    ] = 8192,
    sets: Sets = None,
    on_bad_row: OnBadRow = None,
) -> None:
    """Label new text: the input's fields plus the answer."""
    from labeltune.bulk.labelling import open_job, predict_files, predict_to
    from labeltune.errors import SettingsError
    from labeltune.predict_screen import PredictScreen
    from labeltune.storage import to_json

    settings = _settings(sets, on_bad_row)
    how: dict[str, Any] = dict(min_score=min_score, scores=scores, settings=settings, backend=backend, rows=shard_rows)
    with PredictScreen(err) as watch:
        if to is not None:
            predict_to(to, open_job(run, files, **how), watch=watch, resume=resume, engine=engine, workers=workers)
            return
        if resume or engine != "local":
            at = "--resume" if resume else "--engine"
            raise SettingsError("this is for predictions that are written to a file", at=at, hint="give --out FILE")
        for row in predict_files(run, files, watch=watch, **how):
            sys.stdout.write(to_json(row, sort=False) + "\n")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[str, typer.Option("--to", help="transformers, hub, peft, onnx, openvino.")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="The new folder [RUN/exports/FORMAT, or FORMAT-DTYPE].")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Where the dev rows' file lies now.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="fp32; bf16 (transformers, hub); int8 (onnx).")] = "fp32",
    repo: Annotated[str | None, typer.Option("--repo", help="owner/name on the hub to push to (--to hub).")] = None,
    public: Annotated[bool, typer.Option("--public", help="A repository that everybody sees.")] = False,
    widget: Annotated[
        list[str] | None, typer.Option("--widget", help="A text that the hub's page shows (repeatable).")
    ] = None,
    json_: Json = False,
) -> None:
    """Write a run for another runtime, beside a certificate that it answers as the run does."""
    from dataclasses import asdict

    from labeltune.export.certificate import summary
    from labeltune.export.exporting import export as export_run

    done = export_run(run, to, data=data, out=folder, dtype=dtype, repo=repo, private=not public, widget=widget or ())
    if json_:
        _print_json(asdict(done.certificate) | {"folder": str(done.folder)})
    else:
        out.print(escape(summary(done.certificate)), highlight=False, soft_wrap=True)
        out.print(escape(f"{done.folder}"), highlight=False, soft_wrap=True)


@app.command()
def serve(
    runs: Annotated[list[str], typer.Argument(help="Run folders; NAME=FOLDER serves one under another name.")],
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="The port; 0 is any free one.")] = 8080,
    keys: Annotated[Path | None, typer.Option("--keys", help="A file of API keys [LABELTUNE_KEYS].")] = None,
    admin_keys: Annotated[
        Path | None, typer.Option("--admin-keys", help="Keys that may load and unload [LABELTUNE_ADMIN_KEYS].")
    ] = None,
    sets: Sets = None,
) -> None:
    """Answer over HTTP for any number of runs, those of one backbone on one copy of it; logs are JSON lines."""
    from labeltune.errors import ModelError

    try:
        from labeltune.serve.keys import Keys
        from labeltune.serve.server import serve as serve_runs
    except ImportError as error:
        hint = 'pip install "labeltune[serve]"'
        raise ModelError(f"{error.name or 'a package'} is not installed", hint=hint) from None
    held = Keys.gather(os.environ, keys, admin_keys)
    serve_runs(runs, host=host, port=port, settings=_settings(sets), keys=held, tell=_log)


@app.command()
def inspect(
    data: Annotated[str, typer.Argument(help="Training rows, or a RECIPE.toml.")],
    dev: Dev = None,
    test: Test = None,
    model: Model = None,
    task: TaskName = None,
    sets: Sets = None,
    on_bad_row: OnBadRow = None,
    json_: Json = False,
) -> None:
    """What the model will see, and what is suspicious in the data."""
    from labeltune.inspection import inspect as inspect_data
    from labeltune.inspection import show

    recipe = data if data.endswith(".toml") else None
    found = inspect_data(
        None if recipe else data,
        config=recipe,
        model=model,
        dev=_number_or_name(dev),
        test=_number_or_name(test),
        task=task,
        settings=_settings(sets, on_bad_row),
    )
    if json_:
        _print_json(found.as_json())
    else:
        show(found, out)


@app.command()
def plan(
    data: Annotated[str, typer.Argument(help="Training rows, a RECIPE.toml, or a SWEEP.toml.")],
    model: Model = None,
    dev: Dev = None,
    task: TaskName = None,
    sets: Sets = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Memory to fit into, such as 24GB.")] = None,
    price: Annotated[float | None, typer.Option("--price", help="Price of an hour of this machine.")] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="As many as torchrun will start.")] = 1,
    measure: Annotated[bool, typer.Option(help="Load the model and do a few steps here.")] = True,
    json_: Json = False,
) -> None:
    """Tokens, memory and time of a training or of a whole sweep, before anything is spent."""
    from labeltune.plan_screen import show_plan, show_sweep_plan
    from labeltune.planning import plan as make_plan
    from labeltune.sweeps.planning import is_sweep, plan_sweep

    recipe = data if data.endswith(".toml") else None
    if recipe and is_sweep(recipe):
        flags = {"model.name": model, "data.dev": _number_or_name(dev), "task": task}
        over = {name: value for name, value in flags.items() if value is not None} | _settings(sets)
        sweep_plan = plan_sweep(recipe, settings=over, gpu=gpu, price=price, measure=measure)
        if json_:
            _print_json(sweep_plan.as_json())
        else:
            show_sweep_plan(sweep_plan, out)
        return
    found = make_plan(
        None if recipe else data,
        config=recipe,
        model=model,
        dev=_number_or_name(dev),
        task=task,
        settings=_settings(sets),
        gpu=gpu,
        price=price,
        processes=processes,
        measure=measure,
    )
    if json_:
        _print_json(found.as_json())
    else:
        show_plan(found, out)


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="Training rows: a file, a folder, or hf:owner/name[:config].")],
    model: Model = None,
    dev: Dev = None,
    test: Test = None,
    task: TaskName = None,
    sets: Sets = None,
) -> None:
    """A commented recipe with what was guessed, on standard output."""
    from labeltune.recipe import draft_recipe

    recipe = draft_recipe(
        data, model=model, dev=_number_or_name(dev), test=_number_or_name(test), task=task, settings=_settings(sets)
    )
    sys.stdout.write(recipe)


@app.command()
def adapt(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Text, or data with a text column; or an adapt.toml.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder that becomes the model.")] = ...,  # type: ignore[assignment]  # required
    model: Model = None,
    from_config: Annotated[
        str | None, typer.Option("--from-config", help="Train a fresh model of this config.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Its tokenizer [in the config's folder].")
    ] = None,
    objective: Annotated[str | None, typer.Option("--objective", help="clm, mntp, or mlm (encoders).")] = None,
    heldout: Annotated[str | None, typer.Option("--heldout", help="Held-out text: a file or a share.")] = None,
    sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    json_: Json = False,
) -> None:
    """Train a model further on unlabelled text; --out becomes a plain model folder."""
    from labeltune.adapt_screen import AdaptScreen
    from labeltune.adaptation.adapt import adapt as adapt_model
    from labeltune.storage import read_json

    recipe = texts[0] if texts and texts[0].endswith(".toml") and len(texts) == 1 else None
    with AdaptScreen(err, quiet=json_) as screen:
        adapt_model(
            () if recipe else texts or (),
            config=recipe,
            out=folder,
            model=model,
            from_config=from_config,
            tokenizer=tokenizer,
            objective=objective,
            heldout=_number_or_name(heldout),
            settings=_settings(sets),
            resume=resume,
            listen=screen.see,
        )
    if json_:
        _print_json(read_json(folder / "metrics.json"))


@app.command()
def sweep(
    file: Annotated[str, typer.Argument(help="A SWEEP.toml: settings, and what varies.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the trials and tables.")] = ...,  # type: ignore[assignment]  # required
    sets: Sets = None,
    engine: Annotated[str | None, typer.Option("--engine", help="local, or ray (a cluster).")] = None,
    columns: Annotated[
        str, typer.Option("--columns", help="labeltune, or hpprc (llm-lora-classification's).")
    ] = "labeltune",
    test_all: Annotated[bool, typer.Option("--test-all", help="Score every trial on test, for studies.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted sweep.")] = False,
    json_: Json = False,
) -> None:
    """Train every combination of settings, side by side on one backbone; choose by dev; write tables."""
    from labeltune.storage import read_json
    from labeltune.sweep_screen import SweepScreen, show_sweep
    from labeltune.sweeps.sweeping import DONE
    from labeltune.sweeps.sweeping import sweep as run_sweep

    with SweepScreen(err, quiet=json_) as screen:
        done = run_sweep(
            file,
            out=folder,
            settings=_settings(sets),
            engine=engine,
            columns=columns,
            test_all=test_all,
            resume=resume,
            listen=screen.see,
        )
    if json_:
        _print_json(read_json(folder / DONE))
    else:
        show_sweep(done, out)


@app.command()
def settings(
    section: Annotated[
        str | None, typer.Argument(help="data, model, lora, head, train, eval, adapt, serve or sweep.")
    ] = None,
    json_: Json = False,
) -> None:
    """Every setting: name, type, default, meaning."""
    from labeltune.adaptation.settings import Adaptation
    from labeltune.config import describe
    from labeltune.errors import SettingsError
    from labeltune.serve.settings import Serving
    from labeltune.settings import Settings
    from labeltune.sweeps.settings import SweepFile

    others: dict[str, type[Settings]] = {"adapt": Adaptation, "serve": Serving, "sweep": SweepFile}
    rows = describe(section)
    for name, root in others.items():
        rows += describe(name, root) if section in (None, name) else []
    if not rows:
        own = dict.fromkeys(name.partition(".")[0] for name, *_ in describe() if "." in name)
        raise SettingsError("there is no such section", at=str(section), hint="known: " + ", ".join([*own, *others]))
    if json_:
        _print_json([dict(zip(("name", "type", "default", "meaning"), row, strict=True)) for row in rows])
        return
    table = Table("setting", "type", "default", "meaning", box=None, header_style="bold")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def _train_recipe(
    name: str, data: str | None, run: Path, model: str | None, settings: dict[str, Any], resume: bool, json_: bool
) -> None:
    """`train --recipe`: the training, and its figure beside the published one."""
    from labeltune.recipes.book import find
    from labeltune.recipes.running import refuse_both, run_recipe
    from labeltune.screen import Screen

    refuse_both(name, data)
    recipe = find(name)
    with Screen(err, quiet=json_ or not speaks()) as screen:
        done = run_recipe(recipe, out=run, data=data, model=model, settings=settings, resume=resume, listen=screen.see)
    if speaks():
        err.print(escape(f"{recipe.name}: {done.sentence(recipe)}"), highlight=False, soft_wrap=True)
    if json_ and speaks():
        _print_json(done.run.metrics)


def _number_or_name(value: str | None) -> str | float | None:
    """`0.1` is a fraction, everything else names rows."""
    if value is None:
        return None
    try:
        return float(value)
    except ValueError:
        return value


def _settings(sets: list[str] | None, on_bad_row: str | None = None) -> dict[str, Any]:
    from labeltune.config import parse_set

    flags = {"data.on_bad_row": on_bad_row} if on_bad_row is not None else {}
    return {**flags, **dict(parse_set(text) for text in sets or [])}


def _log(event: Mapping[str, object]) -> None:
    """One line of JSON on standard error; where that is full or closed, answers matter more than logs."""
    from contextlib import suppress
    from datetime import UTC, datetime

    from labeltune.storage import to_json

    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    with suppress(OSError):
        sys.stderr.write(to_json({"time": now, **event}, sort=False) + "\n")
        sys.stderr.flush()


def _print_json(value: object) -> None:
    from labeltune.storage import to_json

    sys.stdout.write(to_json(value, indent=2) + "\n")


def main() -> None:
    """The command `labeltune`. JSON is UTF-8 whatever the locale says."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    app()


if __name__ == "__main__":
    main()
