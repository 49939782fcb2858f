"""Long articles in windows, or their first 512 tokens only: does the rest of an article tell its category?

    python long_text.py --data ../shared/data --model mini --work WORK --out results/NAME.md --hardware "…" [--seeds 3]

`ROWS` articles of each of livedoor's nine categories, drawn once by a seed from the sorted file names, normalised by
NFKC. Each seed parts them anew, by category (`data.dev`, `data.test`), and both sides of a seed see the same parts:
`window` reads all of an article, `truncate` its first 512 tokens. Nothing else differs. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import ended

import labeltune
from labeltune.data.readers.folder import article_files, categories

ROWS = 50
SIDES = ("window", "truncate")
SAME = {
    "data.template": "{title}\n{body}",
    "data.normal_form": "NFKC",
    "data.max_tokens": 512,
    "model.pooling": "mean",
    "model.depth": 2,
    "train.threads": 1,
    "train.epochs": 4,
    "train.batch_rows": 8,
    "train.lr": 3e-3,
}
PARTS = {"dev": 0.1, "test": 0.4}


def part_of(source: Path, to: Path) -> Path:
    """A folder of links to `ROWS` articles of each category."""
    for folder in categories(source):
        (to / folder.name).mkdir(parents=True, exist_ok=True)
        for file in random.Random(0).sample(article_files(folder), ROWS):
            link = to / folder.name / file.name
            if not link.exists():
                link.symlink_to(file.resolve())
    return to


def run(folder: Path, work: Path, model: str, side: str, seed: int) -> labeltune.Run:
    """Train one side of one seed, or take what is there."""
    out = work / f"{side}_{seed}"
    if not ended(out):
        settings = {**SAME, "data.long": side, "train.seed": seed}
        labeltune.train(folder, model=model, out=out, settings=settings, resume=out.exists(), **PARTS)
    return labeltune.open_run(out)


def report(runs: Mapping[str, Sequence[labeltune.Run]], model: str, hardware: str) -> str:
    """The table."""
    first = runs["window"][0]
    splits: Any = json.loads((first.folder / "splits.json").read_text(encoding="utf-8"))
    counts = ", ".join(f"{splits[name]['rows']} {name}" for name in ("train", "dev", "test"))
    lost = [run.metrics["test"]["lost"] for run in runs["truncate"]]
    rows = statistics.mean(cut["rows"] for cut in lost) / splits["test"]["rows"]
    characters = statistics.mean(cut["characters"] for cut in lost) / statistics.mean(cut["rows"] for cut in lost)
    lines = [
        "# Long articles: windows, or the first 512 tokens",
        "",
        f"`benchmarks/long_text.py`, labeltune, {hardware}. livedoor news, {ROWS} articles of each of nine categories "
        f"({counts}), backbone `{model}` cut to {SAME['model.depth']} layers, windows of 512 tokens that overlap by "
        f"{first.config.data.overlap}, at most {first.config.data.max_windows} of them (no article needed more). "
        f"`truncate` reads 512 tokens: of {rows:.0%} of the test articles it leaves out something, "
        f"{characters:,.0f} characters each. Mean ± sd of {len(lost)} seeds; each seed parts the articles anew.",
        "",
        "| side | accuracy | macro_f1 | log_loss | macro_f1 of each seed | tokens trained on | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, found in runs.items():
        cells = [_spread([run.metrics["test"][name] for run in found]) for name in ("accuracy", "macro_f1", "log_loss")]
        each = ", ".join(f"{run.metrics['test']['macro_f1']:.3f}" for run in found)
        cost = [run.metrics["train"] for run in found]
        tokens = statistics.mean(facts["seconds"] * facts["tokens_per_second"] for facts in cost)
        seconds = statistics.mean(facts["seconds"] for facts in cost)
        lines.append(f"| {side} | {' | '.join(cells)} | {each} | {tokens:,.0f} | {seconds:,.0f} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def main() -> None:
    """Train what is missing in WORK, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--work", "--out"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--model", "--hardware"):
        parser.add_argument(name, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    folder = part_of(given.data / "livedoor" / "text", given.work / "articles")
    pairs = [[run(folder, given.work, given.model, side, seed) for side in SIDES] for seed in range(given.seeds)]
    runs = dict(zip(SIDES, zip(*pairs, strict=True), strict=True))
    text = report(runs, given.model, given.hardware)
    given.out.write_text(text, encoding="utf-8")
    figures = {"hardware": given.hardware, "model": given.model} | {
        side: [run.metrics for run in found] for side, found in runs.items()
    }
    given.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
