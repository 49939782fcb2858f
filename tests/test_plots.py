"""The pictures of docs/performance.md are drawn from whatever results there are, always the same."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
RATES = {"labeltune": 3.0, "A": 1.0, "B": 2.5}
FACTS = {
    "training-speed_cpu_2026-01-01": {
        "cells": [
            {"size": "15M", "text": "sst2", "dtype": "float32", "rows_per_second": RATES},
            {"size": "110M", "text": "sst2", "dtype": "bfloat16", "rows_per_second": {"labeltune": 3.0}},
        ]
    },
    "gpu_h100_2026-01-01": {
        "device": "a GPU",
        "found": [{"shape": "7B", "rows": 8, "rows_per_second": RATES, "against_A": 2.0}, {"flops": 1.0}],
    },
    "plan_cpu_2026-01-01": {
        "settings": [{"seconds": 9.0, "planned_seconds": 10.0, "gib": 0.5, "planned_gib": 0.6}],
    },
    "serving_cpu_2026-01-01": {},
}


@pytest.fixture
def plots(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import plots

    return plots


def test_every_kind_of_result_is_drawn_and_others_are_left_alone(plots, tmp_path: Path) -> None:
    for name, facts in FACTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(facts))
    (tmp_path / "plan_cpu_2025-01-01.json").write_text("older, and not read")
    drawn = plots.draw(tmp_path, tmp_path)
    assert [path.name for path in drawn] == [
        "performance-gpu-h100.svg",
        "performance-plan-cpu.svg",
        "performance-training-speed-cpu.svg",
    ]
    assert all(ElementTree.parse(path).getroot().tag.endswith("svg") for path in drawn)


def test_the_pictures_of_the_page_are_those_of_the_committed_results(plots, tmp_path: Path) -> None:
    page = (plots.DOCS / "performance.md").read_text()
    shown = [path for path in plots.draw(docs=tmp_path) if path.name in page]
    assert len(shown) >= 3
    stale = [path.name for path in shown if path.read_bytes() != (plots.DOCS / path.name).read_bytes()]
    assert not stale, "run benchmarks/plots.py"
