"""How long a training is where nobody says."""

from hypothesis import given
from hypothesis import strategies as st

from labeltune.training.schedule import LEAST_EPOCHS, LEAST_STEPS, LOOKS, scheduled
from labeltune.training.settings import TrainConfig


@given(rows=st.integers(1, 20_000), batch=st.integers(1, 64))
def test_few_rows_are_read_as_often_as_it_takes(rows: int, batch: int) -> None:
    found = scheduled(TrainConfig(batch_rows=batch), rows, tokens=0)
    steps = -(-rows // batch)
    assert found.epochs is not None and found.epochs == int(found.epochs) >= LEAST_EPOCHS
    assert found.epochs * steps >= LEAST_STEPS
    assert found.epochs == LEAST_EPOCHS or (found.epochs - 1) * steps < LEAST_STEPS


@given(rows=st.integers(1, 20_000), batch=st.integers(1, 64))
def test_dev_is_looked_at_after_whole_passes_and_not_too_often(rows: int, batch: int) -> None:
    found = scheduled(TrainConfig(batch_rows=batch), rows, tokens=0)
    steps = -(-rows // batch)
    every = steps if found.eval_every == "epoch" else found.eval_every
    assert isinstance(every, int) and every % steps == 0
    assert LEAST_EPOCHS <= (found.epochs or 0) * steps / every <= LOOKS


def test_tokens_count_where_they_make_the_steps() -> None:
    found = scheduled(TrainConfig(batch_tokens=1000), rows=30, tokens=10_000)
    assert found.epochs == LEAST_STEPS / 10 and found.eval_every == 10 * -(-LEAST_STEPS // 10 // LOOKS)


def test_what_is_said_stands() -> None:
    said = TrainConfig(epochs=1.5, eval_every=7)
    assert scheduled(said, 10, 100) == said
    by_steps = scheduled(TrainConfig(steps=12), 10, 100)
    assert (by_steps.steps, by_steps.epochs, by_steps.eval_every) == (12, None, "epoch")
    assert scheduled(TrainConfig(epochs=300), 10, 100).eval_every == "epoch"
