"""A study's table as a picture: a row for each line, a dot with a bar of one standard deviation for each score."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

SCORE = re.compile(r"(-?\d+\.\d) ± (\d+\.\d)")
COLOURS = ("#1d4ed8", "#d97706", "#059669", "#7c3aed")
Line = Mapping[str, Any]
Point = tuple[float, float, float]
"""Score, deviation, height."""


def draw(lines: Sequence[Line], title: str, path: Path) -> bool:
    """Write the picture; False where the lines have no scores with deviations."""
    series = series_of(lines)
    if not series:
        return False
    matplotlib.rcParams["svg.hashsalt"] = "labeltune"
    figure = Figure(figsize=(6.4, 0.6 + 0.24 * len(lines)), layout="constrained")
    axes = figure.subplots()
    for (name, points), colour in zip(series.items(), COLOURS, strict=False):
        scores, spreads, heights = zip(*points, strict=True)
        axes.errorbar(scores, heights, xerr=spreads, fmt="o", ms=4, lw=1, color=colour, label=name)
    axes.set_yticks([-float(n) for n in range(len(lines))], [label_of(line) for line in lines], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", color="#e5e7eb")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(title, fontsize=8, loc="left")
    if len(series) > 1:
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    return True


def series_of(lines: Sequence[Line]) -> dict[str, list[Point]]:
    """The scores with a deviation, by column."""
    found: dict[str, list[Point]] = {}
    for number, line in enumerate(lines):
        for column, value in line.items():
            if match := SCORE.fullmatch(str(value)):
                score, spread = map(float, match.groups())
                found.setdefault(column, []).append((score, spread, -float(number)))
    return found


def label_of(line: Line) -> str:
    """What tells a line from the others: its settings by their last name, not its figures."""
    told = {name: value for name, value in line.items() if isinstance(value, str | int) and not _is_figure(name, value)}
    named = (f"{name.rpartition('.')[2]} {value}" if "." in name else str(value) for name, value in told.items())
    return ", ".join(named)


def _is_figure(name: str, value: str | int) -> bool:
    known = name == "metric" or name.endswith(" lr") or "-" in name or "loss" in name
    return known or bool(SCORE.fullmatch(str(value)))
