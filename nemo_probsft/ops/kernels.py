"""`tiles` in Triton, for CUDA: the same two functions, one program per row or per block of a row.

Cost: `row_stats` reads the logits once, `row_grad` reads them once and writes the gradient once; rows without a
gradient are only written. Nothing of the logits' size is made. Runs on CPU tensors under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Columns a program holds in registers at a time: 32 fp32 values in each of 4 warps' threads."""
NUM_WARPS = 4


def row_stats(
    logits: Tensor,  # [T, n] fp32/bf16/fp16, any strides; n >= 0
    column: Tensor,  # [T] int64 target column on this shard, -1 where it lies elsewhere or the row is ignored
    skip: Tensor,  # [T] bool, rows that need no statistics
    stats: Tensor,  # [3, T] fp32, written: top, rest, target (0 where the target lies elsewhere)
) -> None:
    """As `tiles.row_stats`, with the largest of the other logits as top of every row."""
    if len(logits) == 0:
        return
    _row_stats_kernel[(len(logits),)](
        logits,
        _aligned(column),
        skip.to(torch.int8),
        stats,
        logits.shape[1],
        *logits.stride(),
        *stats.stride(),
        BLOCK=_block(logits),
        num_warps=NUM_WARPS,
    )


def row_grad(
    logits: Tensor,  # [T, n]
    column: Tensor,  # [T] int64
    top: Tensor,  # [T] fp32
    scale: Tensor,  # [T] fp32, softmax_j = scale * exp(x_j - top)
    dlogp: Tensor,  # [T] fp32; rows with 0 become exact zeros and are not read
    target_grad: Tensor,  # [T] fp32, gradient of the target's logit
    grad: Tensor,  # [T, n] in the logits' dtype, written; may be logits itself
) -> None:
    """As `tiles.row_grad`."""
    if logits.numel() == 0:
        return
    block = _block(logits)
    _row_grad_kernel[(len(logits), triton.cdiv(logits.shape[1], block))](
        logits,
        _aligned(column),
        top,
        scale,
        dlogp,
        target_grad,
        grad,
        logits.shape[1],
        *logits.stride(),
        *grad.stride(),
        BLOCK=block,
        num_warps=NUM_WARPS,
    )


def _block(logits: Tensor) -> int:
    return min(BLOCK, triton.next_power_of_2(max(1, logits.shape[1])))


def _aligned(labels: Tensor) -> Tensor:
    """Triton has generated wrong code for int64 pointers that are not 16-byte aligned.

    https://github.com/Dao-AILab/flash-attention/blob/main/flash_attn/ops/triton/cross_entropy.py (comment on labels)
    """
    return labels.clone() if labels.data_ptr() % 16 else labels


@triton.jit
def _row_stats_kernel(
    logits,  # data
    column,
    skip,
    stats,
    n,  # shapes
    row_stride,  # strides
    column_stride,
    stats_stride,
    stats_row_stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    live = tl.load(skip + row) == 0
    y = tl.load(column + row).to(tl.int32)  # columns compare in 32 bits, which is cheaper; offsets need 64
    base = logits + row * row_stride
    top = -float("inf")
    rest = 0.0
    for start in range(0, tl.where(live, n, 0), BLOCK):
        j = start + tl.arange(0, BLOCK)
        x = tl.load(base + j.to(tl.int64) * column_stride, mask=(j < n) & (j != y), other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(x, 0))
        # No finite maximum yet: any shift gives exp(-inf) = 0. A NaN may escape the maximum, but not the sum.
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        rest = rest * tl.exp(top - shift) + tl.sum(tl.exp(x - shift), 0)
        top = higher
    owned = live & (y >= 0)
    target = tl.load(base + y.to(tl.int64) * column_stride, mask=owned, other=0.0).to(tl.float32)
    out = stats + row * stats_row_stride
    tl.store(out, tl.where(live, top, 0.0))
    tl.store(out + stats_stride, rest)
    tl.store(out + 2 * stats_stride, target)


@triton.jit
def _row_grad_kernel(
    logits,  # data
    column,
    top,
    scale,
    dlogp,
    target_grad,
    grad,
    n,  # shapes
    row_stride,  # strides
    column_stride,
    grad_row_stride,
    grad_column_stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offset = j.to(tl.int64)
    g = tl.load(dlogp + row)
    read = j < tl.where(g == 0, 0, n)
    x = tl.load(logits + row * row_stride + offset * column_stride, mask=read, other=0.0).to(tl.float32)
    highest = tl.load(top + row)
    shift = tl.where(highest == -float("inf"), 0.0, highest)
    dx = tl.exp(x - shift) * tl.load(scale + row) * -g
    dx = tl.where(j == tl.load(column + row).to(tl.int32), tl.load(target_grad + row), dx)
    tl.store(grad + row * grad_row_stride + offset * grad_column_stride, tl.where(read, dx, 0.0), mask=j < n)
