"""How long a queue takes is told from the last passes: a part for each, a part for each token."""

import pytest

from labeltune.serve.engine import Speed


def noted(passes: list[tuple[int, float]]) -> Speed:
    speed = Speed()
    for tokens, seconds in passes:
        speed.note(tokens, seconds)
    return speed


def test_nothing_is_expected_before_the_first_pass() -> None:
    assert noted([]).seconds(1000, 100) == 0


@pytest.mark.parametrize(("tokens", "budget"), [(50, 100), (100, 100), (950, 100), (5000, 1000)])
def test_both_parts_are_found_from_passes_of_different_size(tokens: int, budget: int) -> None:
    speed = noted([(size, 0.01 + 0.001 * size) for size in (20, 90, 30, 100, 60, 80)])
    assert speed.seconds(tokens, budget) == pytest.approx(0.01 * -(-tokens // budget) + 0.001 * tokens)


def test_small_passes_do_not_make_full_ones_seem_slow() -> None:
    speed = noted([(20, 0.03), (25, 0.031), (22, 0.0304), (30, 0.032)])
    assert speed.seconds(1000, 1000) < 0.3 < 1000 * 0.03 / 20


def test_equal_passes_give_their_rate() -> None:
    assert noted([(100, 0.1)] * 20).seconds(500, 100) == pytest.approx(0.5)


def test_one_pass_in_which_the_machine_was_away_is_no_new_speed_and_a_new_speed_is_learnt() -> None:
    usual = [(100, 0.1)] * 20
    assert noted([*usual, (100, 60.0)]).seconds(500, 100) < 0.7
    assert noted([*usual, *[(100, 1.0)] * 40]).seconds(500, 100) == pytest.approx(5, rel=0.1)
