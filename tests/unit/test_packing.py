"""Packing lays every example of a step into a row once, within the limit, the same everywhere, and almost full."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_probsft.data import order
from nemo_probsft.data.packing import Packing, best_fit, fill, most_rows, spread

MAX_LENGTH, MEDIAN = 3072, 350  # tokens of an example, as in mathematics


def totals(lengths, rows) -> list[int]:
    return [sum(lengths[index] for index in row) for row in rows]


@st.composite
def runs(draw):
    """(lengths of each step, capacity, micro-batch size, data-parallel size)."""
    size, dp = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    capacity = draw(st.integers(1, 40))
    num_examples = size * dp * draw(st.integers(1, 6))
    lengths = st.lists(st.integers(1, capacity), min_size=num_examples, max_size=num_examples)
    return draw(st.lists(lengths, min_size=1, max_size=4)), capacity, size, dp


@settings(max_examples=200, deadline=None)
@given(runs())
def test_every_example_of_a_step_lies_in_one_row_of_one_rank(run):
    steps, capacity, size, dp = run
    packing = Packing(capacity, most_rows(steps, capacity, size * dp), size)
    assert packing.num_rows <= len(steps[0])  # never more forward passes than without packing
    for lengths in steps:
        ranks = packing.ranks(lengths, dp)
        assert len(ranks) == dp
        assert {len(share) for share in ranks} == {packing.num_rows // (size * dp)}
        rows = [row for share in ranks for batch in share for row in batch]
        assert len(rows) == packing.num_rows
        assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
        assert max(totals(lengths, rows)) <= capacity
        assert packing.ranks(lengths, dp) == ranks


@settings(max_examples=200, deadline=None)
@given(runs())
def test_rows_do_not_depend_on_who_else_computes_them(run):
    """The same rows, be they dealt to two ranks or computed by one, in micro-batches of one or of several."""
    (lengths, *_), capacity, size, dp = run
    num_rows = most_rows([lengths], capacity, size * dp)
    alone = Packing(capacity, num_rows, 1).ranks(lengths, 1)[0]
    shared = Packing(capacity, num_rows, size).ranks(lengths, dp)
    assert sorted(row for share in shared for batch in share for row in batch) == sorted(row for (row,) in alone)


def test_best_fit_takes_the_fullest_row_with_room():
    assert best_fit([2, 6, 5, 4, 3], 10) == [[1, 3], [2, 4, 0]]
    assert best_fit([7, 2, 3], 10) == [[0, 2], [1]]  # the third, which fills the row, comes before the second
    assert best_fit([7, 6, 3], 10) == [[0, 2], [1]]  # both rows have room
    assert best_fit([], 10) == []
    with pytest.raises(AssertionError, match="11 positions do not fit a row of 10"):
        best_fit([11], 10)


def test_spread_takes_the_emptiest_row_with_room():
    assert spread([5, 4, 3, 3, 3], 2) == [[0, 3], [1, 2, 4]]
    assert spread([9, 1, 1, 1], 2, most=2) == [[0, 3], [1, 2]]
    assert spread([1], 2) == [[0], []]


def test_rows_are_even_unless_one_would_be_too_long():
    lengths = [5, 5, 4, 4, 4]  # even rows: 5 4 4 and 5 4
    assert max(totals(lengths, spread(lengths, 2))) == 13
    assert totals(lengths, Packing(13, 2, 1).rows(lengths)) == [13, 9]
    lengths = [3, 3, 2, 2, 2]  # even rows: 3 2 2 and 3 2, where 6 and 6 would do
    assert totals(lengths, spread(lengths, 2)) == [7, 5]
    assert totals(lengths, Packing(6, 2, 1).rows(lengths)) == [6, 6]


def test_a_step_with_little_in_it_leaves_rows_empty():
    assert Packing(10, 4, 2).ranks([9, 1], 2) == [[[[0], [1]]], [[[], []]]]


@pytest.fixture(scope="module")
def steps() -> list[list[int]]:
    """Positions of each step's examples, of a set as large as the paper's of mathematics: 67,000 of them."""
    lengths = np.random.default_rng(0).lognormal(np.log(MEDIAN), 0.8, 67_000).round().clip(2, MAX_LENGTH).astype(int)
    indices = [order.step_indices(len(lengths), 256, 0, step) for step in range(len(lengths) // 256)]
    return [(lengths[step] - 1).tolist() for step in indices]


@pytest.mark.parametrize(("size", "dp"), [(1, 1), (1, 8), (4, 1), (4, 2)])
def test_at_most_5_percent_padding_on_lengths_as_in_mathematics(steps, size, dp, record_property):
    packing = Packing(MAX_LENGTH, most_rows(steps, MAX_LENGTH, size * dp), size)
    found = fill(packing, steps[:50], dp)
    record_property("fill", str(found))
    assert packing.num_rows < 256 / 5
    assert found.padding < 0.05
    assert found.longest_rank < 1.05
    if size > 1:
        assert found.unpacked > 0.4


def test_best_fit_leaves_at_most_5_percent_of_whole_rows_empty(steps):
    """Of rows of max_length, however short the rows are that are made of them."""
    num_rows = sum(len(best_fit(lengths, MAX_LENGTH)) for lengths in steps)
    assert sum(map(sum, steps)) > 0.95 * num_rows * MAX_LENGTH


def test_fill_counts_positions():
    assert fill(Packing(6, 2, 1), [[3, 3, 2, 2, 2]], 2).padding == 0
    two = fill(Packing(8, 2, 2), [[8, 2, 2, 1]], 1)  # rows of 8 and 5
    assert two.padding == pytest.approx(3 / 16)
    assert two.unpacked == pytest.approx(1 - 13 / 20)  # micro-batches 8 2 and 2 1
    assert two.longest_rank == 1
    assert fill(Packing(8, 2, 1), [[8, 2, 2, 1]], 2).longest_rank == pytest.approx(8 / 6.5)


@pytest.mark.parametrize(("dp", "share"), [(1, 0.04), (2, 0.07), (8, 0.19)])
def test_sorting_a_rank_s_examples_by_length_would_save_less_than_packing(steps, dp, share):
    """In micro-batches of 4, without packing. Not done, since it would change the bits of runs that are under way."""
    num_tokens = positions = 0
    for lengths in steps[:50]:
        ranks = [np.sort(order.rank_micro_batches(np.array(lengths), 4, rank, dp).ravel()) for rank in range(dp)]
        positions += sum(4 * int(rank.reshape(-1, 4).max(1).sum()) for rank in ranks)
        num_tokens += sum(lengths)
    padding = 1 - num_tokens / positions
    packing = Packing(MAX_LENGTH, most_rows(steps, MAX_LENGTH, 4 * dp), 4)
    found = fill(packing, steps[:50], dp)
    assert found.padding < padding < found.unpacked
    assert padding == pytest.approx(share, abs=0.01)
