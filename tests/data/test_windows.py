import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from labeltune.data.windows import Cuts, plan, shorten


@st.composite
def texts(draw):
    """(cuts, units, capacity, overlap): units of up to `capacity` tokens with single tokens between some of them."""
    capacity = draw(st.integers(1, 12))
    sizes = draw(st.lists(st.tuples(st.integers(1, capacity), st.integers(0, 2)), min_size=1, max_size=30))
    units, place = [], 0
    for size, gap in sizes:
        units.append((place, place + size))
        place += size + gap
    starts, ends = np.array(units).T
    return Cuts.around(starts, ends, place), units, capacity, draw(st.integers(0, 15))


def everywhere(count: int) -> Cuts:
    return Cuts.at(np.ones(count + 1, bool))


def spans(windows) -> list[tuple[int, int]]:
    return list(zip(windows.starts.tolist(), windows.ends.tolist(), strict=True))


@given(texts())
def test_every_token_is_owned_by_exactly_one_window_that_holds_it(text):
    cuts, _, capacity, overlap = text
    windows = plan(cuts, capacity=capacity, overlap=overlap)
    count = len(cuts.before) - 1
    assert windows.borders[0] == 0 and windows.borders[-1] == count
    assert (np.diff(windows.borders) > 0).all()
    assert (windows.starts <= windows.borders[:-1]).all() and (windows.borders[1:] <= windows.ends).all()
    owners = windows.owner(np.arange(count))
    assert owners.tolist() == np.repeat(np.arange(len(windows)), np.diff(windows.borders)).tolist()


@given(texts())
def test_windows_fit_and_never_divide_a_unit(text):
    cuts, units, capacity, overlap = text
    windows = plan(cuts, capacity=capacity, overlap=overlap)
    inner = {place for start, end in units for place in range(start + 1, end)}
    assert all(end - start <= capacity for start, end in spans(windows))
    assert not inner & {*windows.starts.tolist(), *windows.ends.tolist(), *windows.borders.tolist()}


@given(texts())
def test_each_unit_is_owned_where_its_smaller_context_is_largest(text):
    cuts, units, capacity, overlap = text
    windows = plan(cuts, capacity=capacity, overlap=overlap)
    count = len(cuts.before) - 1

    def context(window: tuple[int, int], unit: tuple[int, int]) -> float:
        (start, end), (first, last) = window, unit
        if not start <= first < last <= end:
            return -1
        left = first - start if start else float("inf")  # an end of the text is no lack of context
        right = end - last if end < count else float("inf")
        return min(left, right)

    for unit in units:
        owner = int(windows.owner(np.array([unit[0]]))[0])
        contexts = [context(window, unit) for window in spans(windows)]
        assert contexts[owner] == max(contexts)


@given(st.integers(0, 80), st.integers(1, 20), st.integers(0, 30))
def test_without_units_neighbours_share_the_overlap_and_all_but_edges_are_full(count, capacity, overlap):
    windows = plan(everywhere(count), capacity=capacity, overlap=overlap)
    shared = windows.ends[:-1] - windows.starts[1:]
    assert (shared >= min(overlap, capacity // 2)).all()
    assert len(windows) == 1 or all(end - start == capacity for start, end in spans(windows))


@given(st.integers(0, 20))
def test_what_fits_is_one_window(count):
    assert spans(plan(everywhere(count), capacity=20, overlap=5)) == [(0, count)]


@given(st.integers(21, 300), st.integers(0, 10))
def test_no_window_is_one_too_many(count, overlap):
    windows = plan(everywhere(count), capacity=20, overlap=overlap)
    assert len(windows) == -(-(count - overlap) // (20 - overlap))


@given(texts(), st.data())
def test_shortening_takes_the_least_that_fits_from_the_end_of_the_room(text, data):
    cuts, units, capacity, _ = text
    count = len(cuts.before) - 1
    assume(count > capacity)
    room = tuple(sorted((data.draw(st.integers(0, count)), data.draw(st.integers(0, count)))))
    inner = {place for start, end in units for place in range(start + 1, end)}
    allowed = [place for place in range(room[0], room[1] + 1) if place not in inner]
    fitting = [cut for cut in allowed if count - (allowed[-1] - cut) <= capacity]
    assert shorten(cuts, capacity=capacity, room=room) == ((fitting[-1], allowed[-1]) if fitting else None)
