"""Several examples in one row: which ones, in how many rows, and which rank gets them.

A step's examples are those of `order`; packing moves them together, and changes neither the set nor any example's loss.
Engines count on a fixed number of micro-batches, so every step of a run has the same number of rows: the most that any
step needs. A step that needs fewer has shorter rows rather than empty ones, so that every rank and every pipeline stage
has as much to do as the others.

Lengths are positions of the model's input: an example of L tokens takes L - 1, since its last token is a label only.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Rows = list[list[int]]  # of each row, its examples: indices into the lengths that were given


def best_fit(lengths: Sequence[int], capacity: int) -> Rows:
    """As few rows of at most `capacity` as it finds: the longest first, each into the fullest row with room for it.

    Source: best fit decreasing, which needs at most 11/9 of the fewest rows and 4 (Johnson et al., SIAM J. Comput. 3,
    1974).
    """
    rows: Rows = []
    room: list[tuple[int, int]] = []  # (positions left, row), ascending
    for index in _longest_first(lengths):
        length = lengths[index]
        assert length <= capacity, f"{length} positions do not fit a row of {capacity}"
        place = bisect_left(room, (length, 0))
        if place == len(room):
            rows.append([index])
            insort(room, (capacity - length, len(rows) - 1))
        else:
            left, row = room.pop(place)
            rows[row].append(index)
            insort(room, (left - length, row))
    return rows


def spread(lengths: Sequence[int], num_rows: int, most: int | None = None) -> Rows:
    """`num_rows` rows, as even as it finds: the longest first, each into the emptiest row that holds fewer than `most`.

    Source: longest processing time first (Graham, SIAM J. Appl. Math. 17, 1969).
    """
    rows: Rows = [[] for _ in range(num_rows)]
    emptiest = [(0, row) for row in range(num_rows)]
    for index in _longest_first(lengths):
        filled, row = heapq.heappop(emptiest)
        rows[row].append(index)
        if most is None or len(rows[row]) < most:
            heapq.heappush(emptiest, (filled + lengths[index], row))
    return rows


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


@dataclass(frozen=True)
class Packing:
    """How the rows of every step of a run are laid out."""

    capacity: int  # positions of a row
    num_rows: int  # of a step, over all data-parallel ranks
    micro_batch_size: int  # rows

    def rows(self, lengths: Sequence[int]) -> Rows:
        """The `num_rows` rows of a step, the longest first; the last ones may be empty.

        As even as possible, unless one of them would be too long then: best fit always finds a way, or `num_rows` is
        not what `most_rows` counted.
        """
        rows = spread(lengths, self.num_rows)
        if max(_filled(lengths, rows)) > self.capacity:
            rows = best_fit(lengths, self.capacity)
        assert len(rows) <= self.num_rows, f"{len(rows)} rows where {self.num_rows} were counted"
        rows += [[] for _ in range(self.num_rows - len(rows))]
        return sorted(rows, key=lambda row: -sum(lengths[index] for index in row))

    def ranks(self, lengths: Sequence[int], dp_size: int) -> list[list[Rows]]:
        """[dp_size][micro-batches][micro_batch_size] rows of a step.

        Rows of like length share a micro-batch, which is as long as its longest row, and the micro-batches are dealt so
        that all ranks have about as many positions.
        """
        rows, size = self.rows(lengths), self.micro_batch_size
        batches = [rows[start : start + size] for start in range(0, self.num_rows, size)]
        longest = [_filled(lengths, batch)[0] for batch in batches]
        shares = spread(longest, dp_size, len(batches) // dp_size)
        return [[batches[i] for i in share] for share in shares]


def _filled(lengths: Sequence[int], rows: Rows) -> list[int]:
    return [sum(lengths[index] for index in row) for row in rows]


def most_rows(steps: Iterable[Sequence[int]], capacity: int, multiple_of: int) -> int:
    """Rows for every step of a run: the most that one of them needs, in whole micro-batches of all ranks.

    steps: the lengths of each step's examples. Cost: about 1 us an example.
    """
    most = max(len(best_fit(lengths, capacity)) for lengths in steps)
    return -(-most // multiple_of) * multiple_of


@dataclass(frozen=True)
class Fill:
    """How full the rows of some steps are."""

    padding: float  # share of the positions that hold no token, where rows are as long as the longest of a micro-batch
    unpacked: float  # the same without packing, at the same micro-batch size
    longest_rank: float  # positions of the data-parallel rank that has most in a step, over their mean; mean of steps


def fill(packing: Packing, steps: Sequence[Sequence[int]], dp_size: int) -> Fill:
    size = packing.micro_batch_size
    num_tokens, packed, unpacked, longest = 0, 0, 0, []
    for lengths in steps:
        ranks = [size * sum(_filled(lengths, batch)[0] for batch in share) for share in packing.ranks(lengths, dp_size)]
        longest.append(max(ranks) * len(ranks) / sum(ranks))
        packed += sum(ranks)
        unpacked += size * int(np.reshape(lengths, (-1, size)).max(1).sum())
        num_tokens += sum(lengths)
    return Fill(1 - num_tokens / packed, 1 - num_tokens / unpacked, float(np.mean(longest)))
