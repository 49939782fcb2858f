"""Durations are said as a person would."""

import pytest

from labeltune.duration import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5360, "89 min"), (5400, "1 h 30 min"), (86_400, "24 h 00 min")],
)
def test_a_duration_is_short(seconds, said):
    assert duration(seconds) == said
