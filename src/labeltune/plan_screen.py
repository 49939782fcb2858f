"""What a plan looks like on a terminal: tokens, memory by part, and sentences on what fits and how long it takes."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labeltune.duration import duration
from labeltune.planning import Plan
from labeltune.sweeps.planning import SweepPlan
from labeltune.wording import counted


def show_plan(found: Plan, console: Console) -> None:
    """Tables of tokens and memory, and sentences on time."""
    tokens = Table("tokens", *found.tokens, box=None, header_style="bold")
    for name in ("rows", "total", "longest", "limit", "windows", "cut_rows"):
        tokens.add_row(name.replace("_", " "), *(f"{getattr(split, name):,}" for split in found.tokens.values()))
    console.print(tokens)
    memory = Table("memory", "GiB", box=None, header_style="bold")
    parts = {name: getattr(found.memory, name) for name in ("weights", "trained", "activations", "process", "total")}
    for name, value in parts.items():
        memory.add_row(name, f"{value:.2f}")
    console.print(memory)
    for sentence in sentences(found):
        console.print(escape(sentence), highlight=False, soft_wrap=True)


def show_sweep_plan(found: SweepPlan, console: Console) -> None:
    """A row for each backbone, and what all takes together."""
    sides = Table("backbone", "trainings", "side by side", "tokens a pass", "GiB", "tokens a second", "time", box=None)
    for side in found.sides:
        speed = "" if side.measured is None else f"{side.measured.train_tokens_per_second:,.0f}"
        took = "" if side.seconds is None else duration(side.seconds)
        numbers = (f"{side.trainings:,}", f"{side.seats}", f"{side.memory.tokens:,}", f"{side.memory.total:.2f}")
        sides.add_row(escape(side.model), *numbers, speed, took)
    console.print(sides)
    console.print(
        f"{counted(found.points, 'point', 'points')}, {counted(found.trainings, 'training', 'trainings')}, "
        f"{found.epochs:,.0f} epochs",
        highlight=False,
    )
    for side in found.sides:
        limit = side.memory.limit
        if limit is not None:
            held = "fits" if side.memory.total <= limit else "does not fit: set sweep.together lower"
            console.print(escape(f"{side.model}: into {limit:g} GiB this {held}"), highlight=False, soft_wrap=True)
    if found.seconds is not None:
        cost = "" if found.cost is None else f", {found.cost:,.2f} at your price"
        console.print(f"about {duration(found.seconds)}{cost}, scores on test apart", highlight=False)


def sentences(found: Plan) -> list[str]:
    """What fits, how long it takes, what it costs."""
    memory = found.memory
    steps = counted(found.steps, "step", "steps")
    said = [f"{steps}, {found.trained_parameters:,} trained parameters, {memory.tokens:,} tokens a pass"]
    if memory.limit is not None:
        fits = f"a pass of {memory.fits:,} tokens fits (train.micro_tokens)" if memory.fits else "nothing fits"
        way = "" if memory.fits else ": try model.quantization = nf4, model.checkpointing = on, or a smaller model"
        said.append(f"into {memory.limit:g} GiB {fits}{way}")
    if found.measured is not None and found.seconds is not None:
        said.append(
            f"measured here: {found.measured.train_tokens_per_second:,.0f} tokens a second in training, "
            f"{found.measured.dev_tokens_per_second:,.0f} on dev, peak memory {found.measured.peak_memory_gib:.2f} GiB"
        )
        said.append(
            f"about {duration(found.seconds)}" + ("" if found.cost is None else f", {found.cost:,.2f} at your price")
        )
    return said
