from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labeltune.data.batches import micro_batches, pack, plan_epoch, sorted_batches
from labeltune.schema import Encoded

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60).map(np.array)


@st.composite
def encoded(draw):
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    total, targets = sum(lengths), draw(st.integers(0, 4))
    starts = [draw(st.integers(0, total - 1)) for _ in range(targets)]
    ends = [draw(st.integers(start + 1, total)) for start in starts]

    def ints(values):
        return np.array(values, np.int32)

    return Encoded(
        tokens=ints([draw(st.integers(0, 99)) for _ in range(total)]),
        window_lengths=ints(lengths),
        piece_start=ints(starts),
        piece_end=ints(ends),
        piece_weight=ints(ends) - ints(starts),
        piece_target=ints(range(targets)),
        target_span=ints([(place, place + 1) for place in range(targets)]).reshape(-1, 2),
        labels=np.array([draw(st.integers(-1, 5)) for _ in range(targets)], np.int64),
    )


SLICES = st.lists(
    st.lists(st.tuples(st.integers(0, 10**12), encoded()), min_size=1, max_size=4), min_size=1, max_size=3
)


# Planning


@given(LENGTHS, st.integers(1, 9), st.randoms())
def test_an_epoch_by_rows_holds_every_row_once_in_the_order_of_the_permutation(lengths, rows, random):
    order = np.array(random.sample(range(len(lengths)), len(lengths)))
    steps = plan_epoch(lengths, permutation=order, batch_rows=rows)
    assert [row for step in steps for row in step] == order.tolist()
    assert all(len(step) == rows for step in steps[:-1]) and 1 <= len(steps[-1]) <= rows


@given(LENGTHS, st.integers(1, 90), st.randoms())
def test_a_step_by_tokens_closes_just_before_it_exceeds_the_budget(lengths, budget, random):
    order = np.array(random.sample(range(len(lengths)), len(lengths)))
    steps = plan_epoch(lengths, permutation=order, batch_tokens=budget)
    assert [row for step in steps for row in step] == order.tolist()
    assert all(lengths[step].sum() <= budget or len(step) == 1 for step in steps)
    assert all(lengths[step].sum() + lengths[after[0]] > budget for step, after in pairwise(steps))


@given(LENGTHS, st.integers(1, 90))
def test_evaluation_takes_every_row_once_the_longest_first(lengths, budget):
    batches = sorted_batches(lengths, budget)
    order = [row for batch in batches for row in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()
    assert all(lengths[batch].sum() <= budget or len(batch) == 1 for batch in batches)


@given(LENGTHS, st.integers(1, 90), st.randoms())
def test_micro_batches_are_a_partition_within_the_budget(lengths, budget, random):
    rows = random.sample(range(len(lengths)), random.randint(1, len(lengths)))
    parts = micro_batches(rows, lengths, micro_tokens=budget)
    assert sorted(row for part in parts for row in part) == sorted(rows)
    assert all(lengths[part].sum() <= budget or len(part) == 1 for part in parts)
    assert all(part == sorted(part, key=lambda row: lengths[row]) for part in parts)


@given(LENGTHS, st.integers(1, 9))
def test_micro_batches_by_count_are_balanced_to_one_row(lengths, count):
    parts = micro_batches(range(len(lengths)), lengths, count=count)
    loads = [int(lengths[part].sum()) for part in parts]
    assert len(parts) == min(count, len(lengths)) and all(parts)
    assert max(loads) - min(loads) <= lengths.max()


def test_planning_needs_exactly_one_measure():
    lengths = np.array([3, 4])
    for measure in ({}, {"batch_rows": 1, "batch_tokens": 1}):
        with pytest.raises(ValueError, match="exactly one"):
            plan_epoch(lengths, permutation=np.arange(2), **measure)
    with pytest.raises(ValueError, match="exactly one"):
        micro_batches([0, 1], lengths)


# Packing


def naive(slices):
    """The stream, token by token and piece by piece."""
    out = {
        name: [] for name in ("ids", "positions", "rows", "places", "starts", "ends", "targets", "weights", "documents")
    }
    bounds, labels, document = [0], [], 0
    counts = {name: [0] for name in ("tokens", "documents", "pieces", "targets")}
    for part in slices:
        labels.append([])
        for number, row in part:
            token, target = len(out["ids"]), len(out["documents"])
            for window in row.window_lengths.tolist():
                out["positions"] += range(window)
                bounds.append(bounds[-1] + window)
            for place, number_of_token in enumerate(row.tokens.tolist()):
                out["ids"].append(number_of_token)
                out["rows"].append(number)
                out["places"].append(place)
            for piece in range(len(row.piece_start)):
                out["starts"].append(token + int(row.piece_start[piece]))
                out["ends"].append(token + int(row.piece_end[piece]))
                out["targets"].append(target + int(row.piece_target[piece]))
                out["weights"].append(float(row.piece_weight[piece]))
            out["documents"] += [document] * len(row.target_span)
            labels[-1] += row.labels.tolist()
            document += 1
        for name, size in (("tokens", "ids"), ("pieces", "starts"), ("targets", "documents")):
            counts[name].append(len(out[size]))
        counts["documents"].append(len(bounds) - 1)
    return out, bounds, labels, counts


@given(SLICES)
def test_packing_equals_a_naive_loop(slices):
    out, bounds, labels, counts = naive(slices)
    batch = pack(slices)
    assert batch.input_ids.tolist() == out["ids"] and batch.position_ids.tolist() == out["positions"]
    assert batch.token_row.tolist() == out["rows"] and batch.token_index.tolist() == out["places"]
    assert batch.cu_seqlens.tolist() == bounds
    assert batch.piece_starts.tolist() == out["starts"] and batch.piece_ends.tolist() == out["ends"]
    assert batch.piece_target.tolist() == out["targets"] and batch.piece_weights.tolist() == out["weights"]
    assert batch.target_document.tolist() == out["documents"]
    assert [part.tolist() for part in batch.labels] == labels
    assert batch.slice_tokens == tuple(counts["tokens"]) and batch.slice_documents == tuple(counts["documents"])
    assert batch.slice_pieces == tuple(counts["pieces"]) and batch.slice_targets == tuple(counts["targets"])
    assert batch.rows == tuple(tuple(number for number, _ in part) for part in slices)


@given(SLICES)
def test_the_stream_has_the_types_of_the_schema(slices):
    batch = pack(slices)
    whole = (batch.input_ids, batch.position_ids, batch.token_row, batch.token_index, batch.cu_seqlens)
    pieces = (batch.piece_starts, batch.piece_ends, batch.piece_target, batch.target_document)
    assert {tensor.dtype for tensor in (*whole, *pieces, *batch.labels)} == {torch.int64}
    assert batch.piece_weights.dtype == torch.float32


@given(SLICES, st.randoms())
def test_a_tokens_address_does_not_depend_on_its_neighbours(slices, random):
    def addressed(batch):
        return sorted(zip(batch.token_row.tolist(), batch.token_index.tolist(), batch.input_ids.tolist(), strict=True))

    rows = [(place, row) for place, (_, row) in enumerate(pair for part in slices for pair in part)]
    shuffled = random.sample(rows, len(rows))
    alone = [address for row in rows for address in addressed(pack([[row]]))]
    assert addressed(pack([shuffled])) == sorted(alone)
