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


def test_of_one_seed_the_difference_stands_alone(studies) -> None:
    assert studies.interval([0.123]) == "+12.3"


def test_a_folder_goes_on_with_the_options_that_began_it(studies, tmp_path) -> None:
    studies.refuse_another(tmp_path, {"rows": 300, "rates": (1e-3, 3e-3)})
    studies.refuse_another(tmp_path, {"rows": 300, "rates": [1e-3, 3e-3]})
    with pytest.raises(SystemExit, match=r"begun with .*300.* not .*1000"):
        studies.refuse_another(tmp_path, {"rows": 1000, "rates": [1e-3, 3e-3]})


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


def test_a_study_is_drawn_by_its_settings_and_scores(studies, tmp_path: Path) -> None:
    import study_plots

    lines = [
        {"data": "SST-2", "metric": "macro_f1", "rows": 16, "mini": "61.2 ± 0.7", "mini lr": "0.001", "words": 0.67},
        {
            "data": "SST-2",
            "metric": "macro_f1",
            "rows": 64,
            "mini": "70.0 ± 1.0",
            "mini - random": "+3.2 [-4.7, +11.2]",
        },
    ]
    assert study_plots.series_of(lines) == {"mini": [(61.2, 0.7, 0.0), (70.0, 1.0, -1.0)]}
    assert [study_plots.label_of(line) for line in lines] == ["SST-2, 16", "SST-2, 64"]
    paths = [tmp_path / "one.svg", tmp_path / "two.svg"]
    assert all(study_plots.draw(lines, "A study", path) for path in paths)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert not study_plots.draw([{"data": "SST-2", "0.001": 0.5}], "No scores", tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
