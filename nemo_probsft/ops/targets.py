"""Which label belongs to which row of the logits, and which columns of the vocabulary lie on this rank."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """This rank's columns [start, start + width) of the vocabulary, of which the first `valid` are real tokens."""

    group: dist.ProcessGroup | None
    tp: int
    start: int
    width: int
    vocab_size: int

    @staticmethod
    def of(width: int, tp_group: dist.ProcessGroup | None, vocab_size: int | None) -> Shard:
        tp = 1 if tp_group is None else dist.get_world_size(tp_group)
        rank = 0 if tp_group is None else dist.get_rank(tp_group)
        total = tp * width
        if vocab_size is not None and not 0 < vocab_size <= total:
            raise ValueError(f"vocab_size is {vocab_size}, but the logits have {tp} x {width} columns; pass 1..{total}")
        return Shard(tp_group, tp, rank * width, width, total if vocab_size is None else vocab_size)

    @property
    def valid(self) -> int:
        return min(max(self.vocab_size - self.start, 0), self.width)

    def gather(self, stats: Tensor) -> Tensor:
        """[n, R] of this rank -> [tp, n, R] of all: the only collective of the op's forward."""
        every = stats.new_empty(self.tp * stats.shape[0], stats.shape[1])
        if stats.numel():
            dist.all_gather_into_tensor(every, stats, group=self.group)
        return every.view(self.tp, *stats.shape)


@dataclass(frozen=True)
class Targets:
    """The labels of R rows of logits. Row i belongs to labels.reshape(-1)[rows[i]], or to the i-th without `rows`."""

    labels: Tensor  # [...] int64 global token ids, any strides
    shard: Shard
    ignore_index: int
    rows: Tensor | None = None  # [R] int64

    def of(self, x: Tensor) -> Tensor:
        """[R] entries of x, which has the labels' shape."""
        return x.reshape(-1) if self.rows is None else x.reshape(-1)[self.rows]

    def place(self, values: Tensor, x: Tensor) -> None:
        """Write values [R] into x, contiguous in the labels' shape, where the rows belong."""
        if self.rows is None:
            x.view(-1).copy_(values)
        else:
            x.view(-1)[self.rows] = values

    @functools.cached_property
    def ignored(self) -> Tensor:
        """[R] bool."""
        return self.of(self.labels) == self.ignore_index

    @functools.cached_property
    def column(self) -> Tensor:
        """[R] int64 column of the label on this shard, -1 where it lies elsewhere or is no token."""
        column = self.of(self.labels) - self.shard.start
        return torch.where((column >= 0) & (column < self.shard.valid), column, -1)

    def check(self) -> None:
        """Raises ValueError for a label that is no token. On CUDA that would wait; `kernels` make its row NaN."""
        if self.labels.is_cuda:
            return
        labels = self.of(self.labels)
        wrong = ((labels < 0) | (labels >= self.shard.vocab_size)) & ~self.ignored
        if wrong.any():
            raise ValueError(
                f"label {labels[wrong][0].item()} is outside [0, {self.shard.vocab_size}) and is not ignore_index "
                f"{self.ignore_index}; check that the tokenizer and the model's vocab_size agree"
            )


def row_views(x: Tensor, num_dims: int, first: int = 0) -> list[tuple[Tensor, int]]:
    """x [..., v] as (view, its first row) pairs: one where the other dimensions merge into num_dims, else several."""
    walk = merged(x.shape[:-1], x.stride()[:-1])
    if len(walk) <= num_dims:
        sizes, steps = zip(*[(1, 0)] * (num_dims - len(walk)), *walk, (x.shape[-1], x.stride(-1)), strict=True)
        return [(x.as_strided(sizes, steps), first)]
    num_rows = x.shape[1:-1].numel()
    return [pair for i, part in enumerate(x) for pair in row_views(part, num_dims, first + i * num_rows)]


def merged(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """(size, stride) of each dimension, where neighbours that a single walk through memory covers are one."""
    walk: list[tuple[int, int]] = []
    for size, step in zip(shape, strides, strict=True):
        if walk and walk[-1][1] == size * step:
            walk[-1] = walk[-1][0] * size, step
        elif size != 1:
            walk.append((size, step))
    return walk
