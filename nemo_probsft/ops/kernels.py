"""The three steps of `cpu` in Triton, for CUDA: a launch each, with nothing around it but the allocation of results.

Cost: `statistics` reads the logits once and, with one shard, ends with log p; `gradient` reads them once and writes the
gradient once, rows without a gradient are only written. Nothing of the logits' size is made. Labels, ignored and wrong
ones, strides and padding are handled inside, because around two kernels that run near the memory's bandwidth the host
loses more with every small operation than the device does. Runs on CPU tensors under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_probsft.ops.targets import Targets, merged, row_views

NUM_STATS_WITH_TOP = 3
"""As `cpu.NUM_STATS_WITH_TOP`: the `top` of a row is the largest of the other logits here, nothing more is needed."""
BLOCK = 4096
"""Columns a program holds in registers at a time: 32 fp32 values in each of 4 warps' threads."""
NUM_WARPS = 4
COMBINED_ROWS = 256
"""Rows that a program of `combine` takes."""
ONE_VARIANT = [
    *("first", "num_rows", "tp", "start", "vocab_size", "ignore_index", "logits_inner", "grad_inner", "stats_stride"),
    *(f"{x}_{part}" for x in ("labels", "dlogp") for part in ("inner", "outer_stride", "inner_stride")),
]
"""Arguments for whose values (1, multiples of 16) Triton compiles no kernels of their own, in the middle of a run."""


def statistics(logits: Tensor, targets: Targets, stats: Tensor, logp: Tensor, top_logp: Tensor | None = None) -> None:
    """As `cpu.statistics`, with the largest of the other logits as top of every row."""
    labels, *labels_layout = _plane(targets.labels)
    for view, first in row_views(logits, 2) if stats.numel() else []:
        _statistics_kernel[(view.shape[:-1].numel(),)](
            view,
            labels,
            _indices(targets.rows),
            stats,
            logp,
            top_logp,
            first,
            targets.shard.valid,
            targets.shard.start,
            targets.shard.vocab_size,
            targets.ignore_index,
            *_layout(view),
            *labels_layout,
            stats.stride(0),
            INDEXED=targets.rows is not None,
            ALONE=targets.shard.tp == 1,
            WITH_TOP=top_logp is not None,
            BLOCK=_block(targets.shard.valid),
            num_warps=NUM_WARPS,
        )


def combine(every: Tensor, targets: Targets, stats: Tensor, logp: Tensor, top_logp: Tensor | None = None) -> None:
    """As `cpu.combine`."""
    labels, *labels_layout = _plane(targets.labels)
    num_rows = stats.shape[1]
    if num_rows:
        _combine_kernel[(-(-num_rows // COMBINED_ROWS),)](
            every,
            labels,
            _indices(targets.rows),
            stats,
            logp,
            top_logp,
            num_rows,
            len(every),
            targets.shard.vocab_size,
            targets.ignore_index,
            *labels_layout,
            stats.stride(0),
            INDEXED=targets.rows is not None,
            WITH_TOP=top_logp is not None,
            BLOCK=COMBINED_ROWS,
            num_warps=NUM_WARPS,
        )


def gradient(
    logits: Tensor, targets: Targets, stats: Tensor, dlogp: Tensor, grad: Tensor, select: Tensor | None = None
) -> None:
    """As `cpu.gradient`."""
    labels, *labels_layout = _plane(targets.labels)
    dlogp, *dlogp_layout = _plane(dlogp)
    width = grad.shape[-1]
    block = _block(width)
    for view, first in row_views(logits, 2) if grad.numel() else []:
        num_rows = stats.shape[1] if select is not None else view.shape[:-1].numel()
        out = view if grad is logits else grad.view(1, -1, width)[:, first:]
        _gradient_kernel[(num_rows, -(-width // block))](
            view,
            labels,
            _indices(targets.rows),
            _indices(select),
            stats,
            dlogp,
            out,
            first,
            targets.shard.valid,
            width,
            targets.shard.start,
            targets.ignore_index,
            *_layout(view),
            *labels_layout,
            *dlogp_layout,
            *_layout(out),
            stats.stride(0),
            INDEXED=targets.rows is not None,
            SELECTED=select is not None,
            BLOCK=block,
            num_warps=NUM_WARPS,
        )
    torch.autograd.graph.increment_version(grad)  # autograd does not see what a kernel writes


def _block(num_columns: int) -> int:
    return min(BLOCK, 1 << max(0, num_columns - 1).bit_length())  # the next power of two


def _layout(rows: Tensor) -> tuple[int, ...]:
    """(inner size, outer stride, inner stride, stride of columns) of [A, B, v]; see `_offset`."""
    return rows.shape[1], *rows.stride()


def _plane(x: Tensor) -> tuple[Tensor, int, int, int]:
    """(x, inner size, outer stride, inner stride) of one number per row; a copy where the dimensions do not merge."""
    walk = merged(x.shape, x.stride())
    if len(walk) > 2 or not _is_aligned(x):
        return _plane(x.clone(memory_format=torch.contiguous_format))
    (_, outer_stride), (inner, inner_stride) = [(1, 0)] * (2 - len(walk)) + walk
    return x, inner, outer_stride, inner_stride


def _indices(rows: Tensor | None) -> Tensor | None:
    return rows if rows is None or _is_aligned(rows) else rows.clone()


def _is_aligned(x: Tensor) -> bool:
    """Triton has generated wrong code for int64 pointers that are not 16-byte aligned.

    https://github.com/Dao-AILab/flash-attention/blob/main/flash_attn/ops/triton/cross_entropy.py (comment on labels)
    """
    return x.dtype != torch.int64 or x.data_ptr() % 16 == 0


@triton.jit
def _offset(index, inner, outer_stride, inner_stride):
    """Where the index-th entry of two dimensions lies, counted in rows of `inner`. Offsets need 64 bits."""
    return (index // inner).to(tl.int64) * outer_stride + (index % inner).to(tl.int64) * inner_stride


@triton.jit
def _finish(local_top, top, rest, target):
    """(log p, scale, 1 - p, log p of the likeliest token) from rest, the sum of exp(x_j - top) over all shards; top is
    the largest logit. See `cpu.combine`."""
    z = target - top
    odds = rest * tl.exp(-z)
    one_more = 1.0 + odds
    # log1p as in Goldberg's "What every computer scientist should know about floating-point arithmetic", theorem 4
    log1p = tl.where(one_more == 1.0, odds, tl.log(one_more) * (odds / (one_more - 1.0)))
    total = rest + tl.exp(z)
    huge = odds >= 1e30
    logp = tl.where(huge, z - tl.log(total), -log1p)
    top_logp = tl.where(top > target, -tl.log(total), logp)
    return logp, tl.exp(local_top - top) / total, tl.where(huge, 1.0, odds / one_more), top_logp


@triton.jit
def _store_finished(scale, miss, y, vocab_size, ignore_index, stats, stats_stride, mask):
    wrong = _is_wrong(y, vocab_size, ignore_index)
    tl.store(stats + stats_stride, tl.where(wrong, float("nan"), scale), mask=mask)
    tl.store(stats + 2 * stats_stride, tl.where(wrong, float("nan"), miss), mask=mask)


@triton.jit
def _store_logp(logp, y, vocab_size, ignore_index, out, mask):
    logp = tl.where(_is_wrong(y, vocab_size, ignore_index), float("nan"), logp)
    tl.store(out, tl.where(y == ignore_index, 0.0, logp), mask=mask)


@triton.jit
def _is_wrong(y, vocab_size, ignore_index):
    return ((y < 0) | (y >= vocab_size)) & (y != ignore_index)


def _jit(kernel: Callable) -> Any:
    return triton.jit(kernel, do_not_specialize=[x for x in ONE_VARIANT if x in inspect.signature(kernel).parameters])


@_jit
def _statistics_kernel(
    logits,  # data
    labels,
    rows,
    stats,
    logp,
    top_logp,
    first,  # sizes
    n,
    start,
    vocab_size,
    ignore_index,
    logits_inner,  # layouts
    logits_outer_stride,
    logits_inner_stride,
    column_stride,
    labels_inner,
    labels_outer_stride,
    labels_inner_stride,
    stats_stride,
    INDEXED: tl.constexpr,
    ALONE: tl.constexpr,
    WITH_TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    index = first + row
    position = index
    if INDEXED:
        position = tl.load(rows + index).to(tl.int32)
    y = tl.load(labels + _offset(position, labels_inner, labels_outer_stride, labels_inner_stride))
    live = (y >= 0) & (y < vocab_size) & (y != ignore_index)
    column = (y - start).to(tl.int32)  # columns compare in 32 bits, which is cheaper
    base = logits + _offset(row, logits_inner, logits_outer_stride, logits_inner_stride)
    top = -float("inf")
    rest = 0.0
    for begin in range(0, tl.where(live, n, 0), BLOCK):
        j = begin + tl.arange(0, BLOCK)
        x = tl.load(base + j.to(tl.int64) * column_stride, mask=j < n, other=-float("inf")).to(tl.float32)
        x = tl.where(j == column, -float("inf"), x)  # in the mask it would cost the loads their 16 bytes
        higher = tl.maximum(top, tl.max(x, 0))
        # No finite maximum yet: any shift gives exp(-inf) = 0. A NaN may escape the maximum, but not the sum.
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        rest = rest * tl.exp(top - shift) + tl.sum(tl.exp(x - shift), 0)
        top = higher
    owned = live & (column >= 0) & (column < n)
    target = tl.load(base + column.to(tl.int64) * column_stride, mask=owned, other=0.0).to(tl.float32)
    out = stats + index
    tl.store(out, top)
    if ALONE:
        highest = tl.maximum(top, target)
        log_p, scale, miss, log_top = _finish(top, highest, rest * tl.exp(top - highest), target)
        _store_finished(scale, miss, y, vocab_size, ignore_index, out, stats_stride, row >= 0)
        _store_logp(log_p, y, vocab_size, ignore_index, logp + position, row >= 0)
        if WITH_TOP:
            _store_logp(log_top, y, vocab_size, ignore_index, top_logp + position, row >= 0)
    else:
        tl.store(out + stats_stride, rest)
        tl.store(out + 2 * stats_stride, target)


@_jit
def _combine_kernel(
    every,  # data
    labels,
    rows,
    stats,
    logp,
    top_logp,
    num_rows,  # sizes
    tp,
    vocab_size,
    ignore_index,
    labels_inner,  # layouts
    labels_outer_stride,
    labels_inner_stride,
    stats_stride,
    INDEXED: tl.constexpr,
    WITH_TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < num_rows
    position = index
    if INDEXED:
        position = tl.load(rows + index, mask=mask, other=0).to(tl.int32)
    offset = _offset(position, labels_inner, labels_outer_stride, labels_inner_stride)
    y = tl.load(labels + offset, mask=mask, other=0)
    top = tl.full((BLOCK,), -float("inf"), tl.float32)
    target = tl.zeros((BLOCK,), tl.float32)
    shard = every + index
    for _ in range(tp):
        top = tl.maximum(top, tl.load(shard, mask=mask, other=0.0))
        target += tl.load(shard + 2 * num_rows, mask=mask, other=0.0)  # one shard holds it, the others hold 0
        shard += 3 * num_rows
    top = tl.maximum(top, target)
    rest = tl.zeros((BLOCK,), tl.float32)
    shard = every + index
    for _ in range(tp):
        local_top = tl.load(shard, mask=mask, other=0.0)
        rest += tl.load(shard + num_rows, mask=mask, other=0.0) * tl.exp(local_top - top)
        shard += 3 * num_rows
    out = stats + index
    log_p, scale, miss, log_top = _finish(tl.load(out, mask=mask, other=0.0), top, rest, target)
    _store_finished(scale, miss, y, vocab_size, ignore_index, out, stats_stride, mask)
    _store_logp(log_p, y, vocab_size, ignore_index, logp + position, mask)
    if WITH_TOP:
        _store_logp(log_top, y, vocab_size, ignore_index, top_logp + position, mask)


@_jit
def _gradient_kernel(
    logits,  # data
    labels,
    rows,
    select,
    stats,
    dlogp,
    grad,
    first,  # sizes
    n,
    width,
    start,
    ignore_index,
    logits_inner,  # layouts
    logits_outer_stride,
    logits_inner_stride,
    column_stride,
    labels_inner,
    labels_outer_stride,
    labels_inner_stride,
    dlogp_inner,
    dlogp_outer_stride,
    dlogp_inner_stride,
    grad_inner,
    grad_outer_stride,
    grad_inner_stride,
    grad_column_stride,
    stats_stride,
    INDEXED: tl.constexpr,
    SELECTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    index = first + row
    position = index
    source = row
    if INDEXED:
        position = tl.load(rows + index).to(tl.int32)
    if SELECTED:
        source = tl.load(select + index).to(tl.int32)
    y = tl.load(labels + _offset(position, labels_inner, labels_outer_stride, labels_inner_stride))
    g = tl.load(dlogp + _offset(position, dlogp_inner, dlogp_outer_stride, dlogp_inner_stride)).to(tl.float32)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    read = j < tl.where((g == 0) | (y == ignore_index), 0, n)
    base = logits + _offset(source, logits_inner, logits_outer_stride, logits_inner_stride)
    x = tl.load(base + j.to(tl.int64) * column_stride, mask=read, other=0.0).to(tl.float32)
    top = tl.load(stats + index)
    shift = tl.where(top == -float("inf"), 0.0, top)
    dx = tl.exp(x - shift) * tl.load(stats + index + stats_stride) * -g
    dx = tl.where(j == (y - start).to(tl.int32), g * tl.load(stats + index + 2 * stats_stride), dx)
    out = grad + _offset(row, grad_inner, grad_outer_stride, grad_inner_stride)
    tl.store(out + j.to(tl.int64) * grad_column_stride, tl.where(read, dx, 0.0), mask=j < width)
