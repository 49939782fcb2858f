"""Who waits for a prediction sees how far it is, how fast, and how long it will take."""

import io

import pytest
from rich.console import Console

from labeltune import predict_screen
from labeltune.predict_screen import PredictScreen


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, every: float, rows: int | None = 1_000) -> str:
    """What a prediction of 400 rows, 100 of them from before, writes."""
    clock = iter(range(1_000))
    monkeypatch.setattr(predict_screen, "EVERY", every)
    monkeypatch.setattr(predict_screen.time, "monotonic", lambda: float(next(clock)))
    page = io.StringIO()
    with PredictScreen(Console(file=page, force_terminal=terminal, width=100)) as screen:
        screen.begin(rows)
        screen.kept(100)
        for _ in range(3):
            screen.advance(100)
        screen.say("in.jsonl: [2] rows could not be used")
    return page.getvalue()


def test_without_a_terminal_it_says_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, terminal=False, every=1.5).splitlines()
    assert lines[0] == "200 rows and 100 from before, 100 rows/s, about 7 s left"
    assert lines[-2] == "in.jsonl: [2] rows could not be used"
    assert lines[-1].startswith("300 rows and 100 from before")


def test_a_short_prediction_without_a_terminal_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=False, every=1e9) == "in.jsonl: [2] rows could not be used\n"


def test_what_cannot_be_counted_has_no_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "left" not in shown(monkeypatch, terminal=False, every=0.5, rows=None)


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "rows/s" in shown(monkeypatch, terminal=True, every=1e9)
