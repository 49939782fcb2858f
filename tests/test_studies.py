"""The figures of the studies."""

from pathlib import Path

import pytest
from scipy.stats import ttest_1samp


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "benchmarks")
    import studies

    return studies


@pytest.fixture
def study_bench(studies):
    import study_bench

    return study_bench


def test_intervals_are_those_of_the_t_test(studies) -> None:
    differences = [0.031, 0.052, 0.012, 0.044]
    low, high = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert studies.interval(differences) == f"+3.5 [{100 * low:+.1f}, {100 * high:+.1f}]"
    assert studies.mean_sd([0.5, 0.7]) == "60.0 ± 14.1" and studies.mean_sd([0.5]) == "50.0"


def test_scores_are_chosen_by_value_and_ordered_by_seed(studies) -> None:
    rows = [
        {"seed": "2", "model.unmask": "all", "test_macro_f1": "0.2"},
        {"seed": "1", "model.unmask": "all", "test_macro_f1": "0.1"},
        {"seed": "1", "model.unmask": "none", "test_macro_f1": "0.9"},
    ]
    assert studies.scores_on_test(rows, "sst2", **{"model.unmask": "all"}) == [0.1, 0.2]


def test_rows_are_a_seeded_choice_written_once(study_bench, shared, tmp_path) -> None:
    first = study_bench.files("wnut17", shared / "data", tmp_path, 12)
    written = {path.name: path.read_text() for path in (tmp_path / "data").iterdir()}
    assert study_bench.files("wnut17", shared / "data", tmp_path / "again", 12).keys() == first.keys()
    assert {path.name: path.read_text() for path in (tmp_path / "again" / "data").iterdir()} == written
    assert written["wnut17-train12.conll"].count("\n\n") == 12 and first["data.max_tokens"] == 64
    assert study_bench.files("intents", shared / "data", tmp_path, 30)["data.train_rows"] == 30
