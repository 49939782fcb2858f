"""What the demo's result looks like: a table a task, messages with their answers in colour, and where to go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from labeltune.demo import COLUMNS, Entry, Result, Shown, best, demo_file
from labeltune.schema import Prediction, SpanPrediction
from labeltune.tasks import TASKS

TITLES = {"classification": "Intents: one of 12 for each message", "tagging": "Entities: six types, strict spans"}
METRICS = {"classification": ("accuracy", "macro_f1"), "tagging": ("span_precision", "span_recall", "span_f1")}
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
"""Of entity labels, in alphabetical order."""


def show_demo(result: Result, console: Console) -> None:
    """Print it."""
    console.print(_backbone(result), highlight=False)
    for task in COLUMNS:
        console.print()
        console.print(_table(result, task))
    console.print(_verdict(result), highlight=False)
    console.print()
    console.print(_examples(result))
    console.print(_next(), highlight=False)


def _backbone(result: Result) -> str:
    """The backbone, its own training, and the data."""
    rows = ", ".join(f"{count:,} {split}" for split, count in result.rows.items())
    facts = [f"[bold]{escape(result.model)}[/]"]
    if "tokens" in result.pretraining:
        facts.append(f"trained on {result.pretraining['tokens']:,} tokens")
    if "bits_per_byte" in result.pretraining:
        facts.append(f"{result.pretraining['bits_per_byte']:.3f} bits per byte on held-out text")
    common = set.intersection(*(set(map(_setting, e.settings.items())) for e in result.entries if e.unmask is not None))
    return (
        f"Backbone: {', '.join(facts)}\n"
        f"Data: {rows} customer-support messages, written for this project\n"
        f"[dim]Settings: {', '.join(sorted(common))}[/]"
    )


def _setting(pair: tuple[str, object]) -> str:
    name, value = pair
    return f"{name} {' '.join(value) if isinstance(value, tuple) else value}"


# Figures


def _table(result: Result, task: str) -> Table:
    """A line per entry; the best figure of each column in bold."""
    metrics = METRICS[task]
    table = Table(title=TITLES[task], title_justify="left", title_style="bold", box=None, header_style="dim")
    table.add_column("on test")
    for name in (*(metric.replace("_", " ") for metric in metrics), "training", "train rows/s", "rows/s"):
        table.add_column(name, justify="right")
    entries = [entry for entry in result.entries if entry.task == task]
    for entry in entries:
        figures = [_figure(entry, metric, entries) for metric in metrics]
        speed = "" if entry.train_rows_per_second is None else f"{entry.train_rows_per_second:,.0f}"
        table.add_row(escape(entry.name), *figures, f"{entry.seconds:.1f} s", speed, f"{entry.rows_per_second:,.0f}")
    return table


def _figure(entry: Entry, metric: str, rivals: Sequence[Entry]) -> str:
    shown = f"{entry.figures['test'][metric]:.3f}"
    best = max(f"{rival.figures['test'][metric]:.3f}" for rival in rivals)
    return f"[bold]{shown}[/]" if shown == best else shown


def _verdict(result: Result) -> str:
    """Who is ahead, in words, and how the seconds were spent."""
    lines = []
    for task in COLUMNS:
        ahead, metric = best(result.entries, task, "test"), TASKS[task].select
        figure = ahead.figures["test"][metric]
        lines.append(f"Best {metric.replace('_', ' ')} in {task}: {escape(ahead.name)} ({figure:.3f}).")
    if any(best(result.entries, task, "test").unmask is None for task in COLUMNS):
        lines.append("[yellow]A baseline is ahead: this backbone is tiny, and a real one is a name away (--model).[/]")
    lines.append(f"{result.seconds:.0f} s on the clock, {result.cpu_seconds:.0f} s of computing in all processes.")
    return "\n".join(lines)


# Examples


def _examples(result: Result) -> Table:
    """Messages with their entities in colour; beside them the intent and its score, and the gold where it differs."""
    found = {span.label for shown in result.shown for span in _found(shown.entities)}
    colours = {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(sorted(found))}
    title = Text("Test messages as the models read them  ", style="bold")
    for label, colour in colours.items():
        title.append(f" {label} ", style=f"reverse {colour}").append(" ")
    table = Table(
        "intent", "message", title=title, title_justify="left", box=None, header_style="dim", padding=(0, 2, 1, 0)
    )
    for shown in result.shown:
        table.add_row(_intent(shown), _message(shown, colours))
    return table


def _intent(shown: Shown) -> Text:
    right = shown.intent.label == shown.gold_intent
    text = Text(str(shown.intent.label), style="bold green" if right else "bold red")
    text.append(f" {shown.intent.score or 0:.2f}", style="dim")
    return text if right else text.append(f"\n{shown.gold_intent}", style="dim").append(" is right", style="dim")


def _message(shown: Shown, colours: dict[str, str]) -> Text:
    """Predicted spans coloured; a line on what differs from the gold."""
    text = Text(shown.text)
    for span in _found(shown.entities):
        text.stylize(f"reverse {colours[span.label]}", span.start, span.end)
    for line in _differences(shown):
        text.append(f"\n{line}", style="dim red")
    return text


def _differences(shown: Shown) -> Iterator[str]:
    found = {(span.start, span.end, span.label) for span in _found(shown.entities)}
    gold = {(span.start, span.end, span.label) for span in shown.gold_entities}
    for word, spans in (("missed", gold - found), ("wrong", found - gold)):
        if spans:
            yield f"{word}: " + ", ".join(f"{shown.text[a:b]} ({label})" for a, b, label in sorted(spans))


def _found(prediction: Prediction) -> tuple[SpanPrediction, ...]:
    return prediction.spans or ()


# What next


def _next() -> str:
    data = demo_file("train").parent
    return (
        "[bold]On your own data[/]\n"
        "  labeltune inspect train.jsonl --model mini        what the model will see, and what is suspicious\n"
        "  labeltune train train.jsonl --test test.jsonl --model MODEL --out runs/first\n"
        "  labeltune predict runs/first new.jsonl --out labelled.jsonl\n"
        "MODEL is any decoder in Hugging Face format, by name or folder. The rows of this demo lie in\n"
        f"  {escape(str(data))}"
    )
