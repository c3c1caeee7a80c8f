"""Which rows of the Hugging Face tensors stand where in Megatron-Core's fused ones. Rows are only moved: bit-exact."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from conversion.families import Mapping, ModelSpec


class Rows(NamedTuple):
    """`count` rows of the Hugging Face tensor number `part` of a mapping, from `first` on."""

    part: int
    first: int
    count: int


def segments(mapping: Mapping, spec: ModelSpec) -> list[Rows]:
    """The rows of the Megatron tensor, in its order."""
    if not mapping.by_group:
        return [Rows(part, 0, shape[0]) for part, shape in enumerate(mapping.shapes)]
    counts = [shape[0] // spec.num_query_groups for shape in mapping.shapes]
    return [
        Rows(part, group * count, count) for group in range(spec.num_query_groups) for part, count in enumerate(counts)
    ]


def pieces(mapping: Mapping, spec: ModelSpec, first: int, count: int) -> Iterator[Rows]:
    """What the Megatron rows [first, first + count) are, in their order."""
    start = 0
    for rows in segments(mapping, spec):
        low, high = max(first, start), min(first + count, start + rows.count)
        if low < high:
            yield Rows(rows.part, rows.first + low - start, high - low)
        start += rows.count


def locate(mapping: Mapping, spec: ModelSpec, wanted: Rows) -> Iterator[tuple[int, int]]:
    """(first, count) of the Megatron rows that hold `wanted`, in the order of `wanted`."""
    start = 0
    for rows in segments(mapping, spec):
        low, high = max(wanted.first, rows.first), min(wanted.first + wanted.count, rows.first + rows.count)
        if rows.part == wanted.part and low < high:
            yield start + low - rows.first, high - low
        start += rows.count


def split(mapping: Mapping, tensor: Tensor, spec: ModelSpec) -> list[Tensor]:
    """A whole Megatron tensor -> the Hugging Face tensors of the mapping."""
    if len(mapping.shapes) == 1:
        return [tensor]
    order = segments(mapping, spec)
    parts: list[list[Tensor]] = [[] for _ in mapping.shapes]
    for rows, block in zip(order, tensor.split([rows.count for rows in order]), strict=True):
        parts[rows.part].append(block)
    return [torch.cat(blocks) for blocks in parts]
