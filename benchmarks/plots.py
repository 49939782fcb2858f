"""Draw what lies in results/ as docs/performance-*.svg: how time grows, speed beside others, plans beside trainings.

    python benchmarks/plots.py

Every JSON file whose name begins like an entry of PLOTS is drawn, the latest of each kind of hardware; what is not
there is left out, and so is what a file lists as withdrawn. The same files give the same pictures, byte for byte.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

HERE = Path(__file__).resolve().parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"
COLOURS = {"labeltune": "#1d4ed8", "A": "#d97706", "B": "#9ca3af"}
OTHERS = ("#059669", "#d97706", "#9ca3af", "#7c3aed", "#db2777")
Facts = Mapping[str, Any]


def growth(facts: Facts) -> Figure:
    """Seconds against each thing that varies, on logarithmic axes; the grey line is proportional growth."""
    names = list(facts["base"])
    figure = Figure(figsize=(2.1 * len(names), 2.3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        points = sorted((p[name], p["seconds"]) for p in facts["points"] if p["varied"] == name)
        values, seconds = zip(*points, strict=True)
        axes.plot(values, [seconds[0] * value / values[0] for value in values], color="#d1d5db", linewidth=1)
        axes.plot(values, seconds, color=COLOURS["labeltune"], marker="o", markersize=3, linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(values, [f"{value:,}" for value in values], rotation=60)
        for form in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            form(ScalarFormatter() if form == axes.yaxis.set_major_formatter else NullFormatter())
        axes.set_xlabel({"length": "tokens a row", "rank": "LoRA rank"}.get(name, name))
    figure.axes[0].set_ylabel("CPU seconds")
    return _titled(figure, f"Time of a training, {facts['model']}")


def training_speed(facts: Facts) -> Figure:
    """Rows a second of each side as a multiple of A's, a group of bars for each text and backbone."""
    cells = [cell for cell in facts["cells"] if "A" in cell["rows_per_second"]]
    groups = {
        f"{cell['text']}\n{cell['size']}" + ("" if cell["dtype"] == "float32" else f"\n{cell['dtype']}"): {
            side: cell["rows_per_second"][side] / cell["rows_per_second"]["A"]
            for side in COLOURS
            if side in cell["rows_per_second"] and side not in facts.get("withdrawn", ())
        }
        for cell in cells
    }
    return _bars(groups, "rows/s, A = 1", "Training beside Trainer + PEFT (A: padded to the longest; B: grouped)")


def gpu(facts: Facts) -> Figure:
    """Rows a second of each side on a GPU as a multiple of A's, a group of bars for each shape and step."""
    speeds = [each for each in facts["found"] if "against_A" in each]
    groups = {
        f"{each['shape']}, {each['rows']} rows": {
            side: rate / each["rows_per_second"]["A"] for side, rate in each["rows_per_second"].items()
        }
        for each in speeds
    }
    return _bars(groups, "rows/s, A = 1", f"Training short texts on {facts['device']}")


def prediction_speed(facts: Facts) -> Figure:
    """Texts a second of each side, medians of the repeats, as a multiple of the sorted loop's."""
    rates: dict[str, dict[str, list[float]]] = {}
    for turn in facts["turns"]:
        sides = rates.setdefault(f"{turn['text']}\n{turn['size']}", {})
        sides.setdefault(turn["side"], []).append(turn["texts_per_second"])
    middle = {group: {side: statistics.median(found) for side, found in by.items()} for group, by in rates.items()}
    groups = {group: {side: r / by["sorted loop"] for side, r in by.items()} for group, by in middle.items()}
    return _bars(groups, "texts/s, sorted loop = 1", "Prediction")


def sweep_speed(facts: Facts) -> Figure:
    """Rates of a sweep and of what it replaces, as a multiple of one training after another."""
    groups = {
        size: {
            side: rate / rates["one by one"]
            for side, rate in rates.items()
            if side != "whole" and side not in facts.get("withdrawn", ())
        }
        for size, rates in facts.items()
        if isinstance(rates, Mapping) and "one by one" in rates
    }
    return _bars(groups, "one by one = 1", "Twelve learning rates")


def plan(facts: Facts) -> Figure:
    """Planned against taken, time and memory; on the line the plan is right, the grey band is a quarter."""
    figure = Figure(figsize=(6, 2.8), layout="constrained")
    for axes, name, unit in zip(figure.subplots(1, 2), ("seconds", "gib"), ("seconds", "GiB"), strict=True):
        pairs = [(row[name], row[f"planned_{name}"]) for row in facts["settings"]]
        ends = [0.7 * min(map(min, pairs)), 1.4 * max(map(max, pairs))]
        axes.fill_between(ends, [0.75 * end for end in ends], [1.25 * end for end in ends], color="#e5e7eb")
        axes.plot(ends, ends, color="#9ca3af", linewidth=1)
        axes.scatter(*zip(*pairs, strict=True), s=16, color=COLOURS["labeltune"])
        axes.set_xlabel(f"{unit} taken")
        axes.set_ylabel(f"{unit} planned")
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
    return _titled(figure, "labeltune plan beside the training")


PLOTS: dict[str, Callable[[Facts], Figure]] = {
    "growth": growth,
    "training-speed": training_speed,
    "gpu": gpu,
    "prediction-speed": prediction_speed,
    "sweep-speed": sweep_speed,
    "plan": plan,
}


def _bars(groups: Mapping[str, Mapping[str, float]], unit: str, title: str) -> Figure:
    """A group of bars for each name, a bar a side."""
    sides = list(dict.fromkeys(side for group in groups.values() for side in group))
    free = iter(OTHERS)
    colours = {side: COLOURS.get(side) or next(free) for side in sides}
    figure = Figure(figsize=(max(4.0, 0.9 * len(groups) + 1.5), 2.8), layout="constrained")
    axes: Axes = figure.subplots()
    width = 0.8 / max(len(sides), 1)
    for number, side in enumerate(sides):
        there = [(place, group[side]) for place, group in enumerate(groups.values()) if side in group]
        places = [place + (number - (len(sides) - 1) / 2) * width for place, _ in there]
        axes.bar(places, [value for _, value in there], width, label=side, color=colours[side])
    axes.set_xticks(range(len(groups)), groups, fontsize=7)
    axes.set_ylabel(unit)
    axes.legend(frameon=False, fontsize=7, ncols=min(len(sides), 3), loc="lower left", bbox_to_anchor=(0, 1))
    return _titled(figure, title)


def _titled(figure: Figure, title: str) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=9)
    return figure


def latest(results: Path) -> dict[tuple[str, str], Path]:
    """(kind, hardware) -> the newest file called `<kind>_<hardware>_<date>.json`."""
    found = {}
    for path in sorted(results.glob("*_*_*.json")):
        kind, hardware, _ = path.stem.split("_", 2)
        if kind in PLOTS:
            found[kind, hardware] = path
    return found


def draw(results: Path = RESULTS, docs: Path = DOCS) -> list[Path]:
    """Write a picture for each file that can be drawn; which they are."""
    written = []
    style = {"svg.hashsalt": "labeltune", "svg.fonttype": "none", "font.size": 8, "font.family": "sans-serif"}
    for (kind, hardware), path in latest(results).items():
        facts = json.loads(path.read_text("utf-8"))
        with matplotlib.rc_context(style):
            picture = docs / f"performance-{kind}-{hardware}.svg"
            PLOTS[kind](facts).savefig(picture, format="svg", metadata={"Date": None})
        written.append(picture)
    return written


if __name__ == "__main__":
    for picture in draw():
        print(picture.name)
