"""Row statistics and logit gradients of the target log-prob, in plain torch, one cache-sized tile of rows at a time.

This is the executable specification of `native` and `kernels`. A tile of fp32 values is small enough to stay in a
core's L2 cache, so every pass after the first is free of memory traffic: the logits are read once per direction.
Whatever can be done for all rows at once is done outside of the loop over tiles, where a small op costs as much as a
pass.

Statistics of a row are (top, rest, target): rest = sum of exp(x_j - top) over all columns but the target's, target =
x_y. Leaving the target out keeps every bit of 1 - p when p -> 1. `top` only keeps rest within fp32's range: it is the
largest of the other logits where that is large, and 0, which saves the subtraction, where it is not. Who asks for
log p of the likeliest token needs a fourth, `largest`: exactly the largest of the other logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE_BYTES = 1 << 20
"""fp32 bytes of one tile: a server core's L2. Smaller ones stay there better but pay the ops' fixed cost more often."""
MODERATE = 27.0
"""Rows whose largest logit is below this in magnitude are not shifted: exp(+-27) = 5e11 and 2e-12."""
TINY = 1e-30
"""Row factors below this are applied in two steps, because their own underflow could precede the product's."""


def row_stats(
    logits: Tensor,  # [T, n] fp32/bf16/fp16, any strides; n >= 0
    column: Tensor,  # [T] int64 target column on this shard, -1 where it lies elsewhere or the row is ignored
    skip: Tensor,  # [T] bool, rows that need no statistics
    stats: Tensor,  # [3 or 4, T] fp32, written: top, rest, target (0 where the target lies elsewhere), largest
) -> None:
    """One read of the logits. Tiles of skipped rows are not read and get zeros."""
    stats.zero_()
    if logits.numel() == 0:
        stats[::3] = -torch.inf
        return
    num_columns = logits.shape[1]
    num_rows = _rows_per_tile(num_columns)
    owned = (column >= 0).nonzero().squeeze(1)
    stats[2, owned] = logits[owned, column[owned]].float()
    sources, tops, rests = logits.split(num_rows), stats[0].split(num_rows), stats[1].split(num_rows)
    num_targets = torch.bincount(owned // num_rows, minlength=len(sources)).tolist()
    targets = (owned % num_rows * num_columns + column[owned]).split(num_targets)
    scratch = torch.empty(len(sources[0]), num_columns, dtype=torch.float32, device=logits.device)
    for source, target, dead, top, rest in zip(sources, targets, _all(skip, num_rows), tops, rests, strict=True):
        if dead:
            continue
        tile = scratch[: len(source)].copy_(source)
        tile.view(-1).index_fill_(0, target, -torch.inf)
        torch.amax(tile, dim=1, out=top)
        if all(-MODERATE < value < MODERATE for value in top.tolist()):  # NaN is not
            tile.exp_()
        else:
            tile.sub_(_shift(top).unsqueeze(1)).exp_()
        torch.sum(tile, dim=1, out=rest)
    stats[3:] = stats[0]
    stats[0] = torch.where(stats[0].abs() < MODERATE, 0.0, stats[0])


def row_grad(
    logits: Tensor,  # [T, n]
    column: Tensor,  # [T] int64
    top: Tensor,  # [T] fp32
    scale: Tensor,  # [T] fp32, softmax_j = scale * exp(x_j - top)
    dlogp: Tensor,  # [T] fp32; rows with 0 become exact zeros, whatever the logits hold
    target_grad: Tensor,  # [T] fp32, gradient of the target's logit
    grad: Tensor,  # [T, n] in the logits' dtype, written: -dlogp * softmax but for the target; may be logits itself
) -> None:
    """One read of the logits and one write of the gradient, which is rounded once, from fp32."""
    if logits.numel() == 0:
        return
    num_rows = _rows_per_tile(logits.shape[1])
    zero, factor = dlogp == 0, -dlogp * scale
    scratch = None
    if logits.dtype != torch.float32:
        scratch = torch.empty(min(num_rows, len(logits)), logits.shape[1], device=logits.device)
    columns = (x.unsqueeze(1).split(num_rows) for x in (_shift(top), scale, -dlogp, factor))
    flags = _all(zero, num_rows), _all(top == 0, num_rows), _all(factor.abs() >= TINY, num_rows)
    for source, out, shift, scale_, minus_dlogp, factor_, dead, unshifted, plain in zip(
        logits.split(num_rows), grad.split(num_rows), *columns, *flags, strict=True
    ):
        if dead:
            out.zero_()
            continue
        tile = out if scratch is None else scratch[: len(source)]
        tile.copy_(source) if unshifted else torch.sub(source, shift, out=tile)
        tile.exp_()
        tile.mul_(factor_) if plain else tile.mul_(scale_).mul_(minus_dlogp)
        if scratch is not None:
            out.copy_(tile)
    owned = (column >= 0).nonzero().squeeze(1)
    grad[owned, column[owned]] = target_grad[owned].to(grad.dtype)
    grad.index_fill_(0, zero.nonzero().squeeze(1), 0.0)


def _shift(top: Tensor) -> Tensor:
    """An all -inf row has no finite top; its terms are exp(-inf) = 0 with any."""
    return torch.where((top == -torch.inf) | (top.abs() < MODERATE), 0.0, top)


def _rows_per_tile(num_columns: int) -> int:
    return max(1, TILE_BYTES // (4 * num_columns))


def _all(flags: Tensor, num_rows: int) -> list[bool]:
    """Per tile, whether all of its rows are flagged."""
    values = flags.tolist()
    return [all(values[i : i + num_rows]) for i in range(0, len(values), num_rows)]
