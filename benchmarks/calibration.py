"""What the temperature fitted on dev does to the test rows of finished runs, and what abstaining buys.

    python calibration.py RUN… --out results/NAME.md --hardware "…"        writes NAME.json beside it

A run needs a test split (`data.test`); it is opened again, as its training opened it. `before` is the model as trained
(temperature 1), `after` with the temperature that the run folder holds. Figures are of the test split alone, and
scikit-learn's log loss is computed beside ours.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.metrics import log_loss

import labeltune
from labeltune.data.datasets import load
from labeltune.data.store import Store
from labeltune.tasks import Calibration

BARS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Figures:
    """A run's figures on its test rows. answered: (bar, coverage, accuracy of what is answered)."""

    name: str
    trained: str
    rows: int
    temperature: float
    accuracy: float
    log_loss: tuple[float, float]
    ece: tuple[float, float]
    answered: tuple[tuple[float, float, float], ...]


def measure(folder: Path) -> Figures:
    """Score the test rows of a run with and without its calibration."""
    predictor = labeltune.load(folder)
    config, labeller = predictor.run.config, predictor.labeller
    test = load(config.data, config.task, seed=config.train.seed).test
    if test is None:
        raise SystemExit(f"{folder} has no test split")
    examples = list(test)
    rows = Store.build(examples, predictor.assembly.encoder.encode_many)
    gold = np.array([example.label for example in examples])
    losses, errors = [], []
    for calibration in (Calibration(), labeller.calibration):
        predictions = replace(labeller, calibration=calibration).predict(examples, rows)
        found = labeller.task.score(examples, predictions, labeller.labels)
        table = np.array([[prediction.scores[name] for name in predictor.labels] for prediction in predictions])
        check = log_loss(gold, table / table.sum(1, keepdims=True), labels=list(predictor.labels))
        assert abs(check - found["log_loss"]) < 1e-4, (check, found["log_loss"])
        losses.append(found["log_loss"])
        errors.append(found["ece"])
    scores = np.array([prediction.score for prediction in predictions])
    right = np.array([prediction.label for prediction in predictions]) == gold
    answered = tuple(_at(bar, scores, right) for bar in BARS)
    temperature = labeller.calibration.temperature
    accuracy = float(right.mean())
    trained = f"{Path(str(config.model.name)).name}, lr {config.train.lr:g}, {config.train.epochs:g} epochs"
    return Figures(folder.name, trained, len(gold), temperature, accuracy, tuple(losses), tuple(errors), answered)


def _at(bar: float, scores: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    kept = scores >= bar
    return bar, float(kept.mean()), float(right[kept].mean()) if kept.any() else 0.0


def report(found: list[Figures], hardware: str) -> str:
    """The two tables."""
    lines = [
        "# Calibration and abstention",
        "",
        f"`benchmarks/calibration.py`, labeltune, {hardware}. The temperature is fitted on dev; all figures are of the "
        "test split. " + "; ".join(f"{one.name}: {one.trained}" for one in found) + ".",
        "",
        "| run | test rows | accuracy | temperature | log loss before | after | ECE before | after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for f in found:
        losses, errors = (" | ".join(f"{value:.4f}" for value in pair) for pair in (f.log_loss, f.ece))
        lines.append(f"| {f.name} | {f.rows:,} | {f.accuracy:.4f} | {f.temperature:.3f} | {losses} | {errors} |")
    lines += ["", "Coverage, and in brackets the accuracy of what is answered, under `predict --min-score`:", ""]
    lines += ["| run | " + " | ".join(f"{bar:g}" for bar in BARS) + " |", "|---|" + "---|" * len(BARS)]
    for f in found:
        cells = " | ".join(f"{c:.3f} ({a:.3f})" if c else "0 (–)" for _, c, a in f.answered)
        lines.append(f"| {f.name} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the runs that are named, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hardware", required=True)
    given = parser.parse_args()
    found = [measure(folder) for folder in given.runs]
    text = report(found, given.hardware)
    given.out.write_text(text, encoding="utf-8")
    figures = {"hardware": given.hardware, "runs": [asdict(one) for one in found]}
    given.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
