"""The report of a sweep: `report.md` with its tables and warnings, and a plot of the score against each axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from labeltune.config import get
from labeltune.storage import write_atomic
from labeltune.sweeps.selection import Scored
from labeltune.sweeps.tables import Table, shown

PLOTS = "plots"
LONGEST = 24
"""Characters of a value under a plot."""


def write_report(folder: Path, title: str, said: Sequence[str], tables: Sequence[Table], plots: Sequence[Path]) -> None:
    """Write `report.md`; the table of all trials is only linked."""
    parts = [f"# {title}\n", *(f"- {sentence}" for sentence in said), ""]
    for table in tables:
        if table.name == "all":
            parts.append(f"All {len(table.rows):,} trials: [all.csv](all.csv), [all.md](all.md)\n")
        else:
            parts += [f"## {table.name}\n", table.to_markdown()]
    parts += [f"![{path.stem}]({path.relative_to(folder).as_posix()})\n" for path in plots]
    write_atomic(folder / "report.md", "\n".join(parts))


def write_plots(folder: Path, points: Sequence[Scored], axes: Sequence[str], metric: str, higher: bool) -> list[Path]:
    """A plot for each axis that has several values: the dev score of every point, and the best at each value."""
    written = []
    for name in axes:
        pairs = [(get(point.specs[0].config, name), point.dev) for point in points if point.dev is not None]
        if len({repr(value) for value, _ in pairs}) > 1:
            path = folder / PLOTS / f"{name}.svg"
            write_atomic(path, _plot(name, pairs, metric, max if higher else min))
            written.append(path)
    return written


def _plot(name: str, pairs: Sequence[tuple[Any, float]], metric: str, better: Callable[[float, float], float]) -> bytes:
    with matplotlib.rc_context({"svg.hashsalt": "labeltune", "font.size": 9}):
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots()
        places, ticks = _places([value for value, _ in pairs])
        scores = [score for _, score in pairs]
        axes.scatter(places, scores, s=14, alpha=0.5, color="#2563eb")
        best: dict[float, float] = {}
        for place, score in zip(places, scores, strict=True):
            best[place] = better(score, best.get(place, score))
        axes.plot(sorted(best), [best[place] for place in sorted(best)], color="#1e3a8a", linewidth=1)
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks, rotation=20, ha="right")
        elif min(places) > 0 and max(places) / min(places) >= 10:
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.set_ylabel(f"dev {metric}")
        axes.spines[["top", "right"]].set_visible(False)
        file = BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _places(values: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Where values stand on an axis: numbers as they are, others in order, with the words under them."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values], []
    different = list(dict.fromkeys(map(repr, values)))
    words = {repr(value): shown(value)[:LONGEST] for value in values}
    return [float(different.index(repr(value))) for value in values], [words[key] for key in different]
