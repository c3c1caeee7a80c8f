"""The three steps of a target log-prob on a CPU: `native` or `tiles` on the logits, plain torch on one number per row.

`kernels` computes the same three on CUDA, a launch each; what they pass on is their own business.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from nemo_probsft.ops import native, tiles
from nemo_probsft.ops.targets import Targets, row_views

NUM_STATS_WITH_TOP = 4
"""Rows of `stats` where top_logp is asked for: `top` is not exactly the largest of the other logits here."""


def statistics(
    logits: Tensor,  # [..., v] fp32/bf16/fp16, R rows, any strides
    targets: Targets,
    stats: Tensor,  # [3, R], or [4, R] for top_logp; fp32, written; rows contiguous
    logp: Tensor,  # in the labels' shape, fp32, contiguous
    top_logp: Tensor | None = None,  # as logp
) -> None:
    """One read of the logits. Fills stats with (top, rest, target, largest), see `tiles`; with one shard it is combined
    at once.

    Ignored rows are not read.
    """
    for view, first in row_views(logits, 1):
        part = slice(first, first + len(view))
        implementation(logits).row_stats(
            view[:, : targets.shard.valid], targets.column[part], targets.ignored[part], stats[:, part]
        )
    if targets.shard.tp == 1:
        combine(stats.unsqueeze(0), targets, stats, logp, top_logp)


def combine(
    every: Tensor,  # [tp, 3 or 4, R] statistics of all shards
    targets: Targets,
    stats: Tensor,  # [3 or 4, R] this shard's; becomes (top, scale, 1 - p), where softmax_j = scale * exp(x_j - top)
    logp: Tensor,  # written at the targets' places: log p, 0 where ignored
    top_logp: Tensor | None = None,  # written likewise: log p of the likeliest token
) -> None:
    """Every rank sums the same numbers in the same order, so all agree bitwise on log p."""
    tops, rests, target_logits, *largest = every.unbind(1)
    target = target_logits.sum(0)  # one shard holds it, the others hold 0
    top = torch.maximum(tops.amax(0), target)
    rest, z = (rests * (tops - top).exp()).sum(0), target - top
    odds = rest * torch.exp(-z)  # (1 - p) / p, so that p -> 1 loses nothing; overflows where log p is below -88
    total = rest + torch.exp(z)
    found = torch.where(odds < 1e30, -torch.log1p(odds), z - torch.log(total))
    found = found.masked_fill(targets.ignored, 0.0)
    stats[1], stats[2] = (stats[0] - top).exp() / total, -torch.expm1(found)
    targets.place(found, logp)
    if top_logp is not None:
        others = largest[0].amax(0)
        found = torch.where(others > target, -torch.log(total * (top - others).exp()), found).clamp(max=0.0)
        targets.place(found.masked_fill(targets.ignored, 0.0), top_logp)


def gradient(
    logits: Tensor,  # [..., v]; [N, v] with select
    targets: Targets,  # of the R rows of grad
    stats: Tensor,  # [3 or 4, R] as `combine` left them
    dlogp: Tensor,  # in the labels' shape, any strides
    grad: Tensor,  # [..., v] in the logits' dtype, written; logits itself, or contiguous
    select: Tensor | None = None,  # [R] int64 rows of the logits; None: all, in order. Then grad is not logits
) -> None:
    """grad = dlogp * (onehot - softmax): one read and one write. Padded columns and rows that are ignored or whose
    dlogp is 0 become exact zeros, whatever the logits hold."""
    if select is not None:
        logits = torch.index_select(logits, 0, select, out=grad)
    top, scale, miss = stats[:3]
    g = targets.of(dlogp).float().masked_fill(targets.ignored, 0.0)
    per_row, valid = (targets.column, top, scale, g, g * miss), targets.shard.valid
    for view, first in row_views(logits, 1):
        part = slice(first, first + len(view))
        out = view if grad is logits else grad.view(-1, grad.shape[-1])[part]
        implementation(logits).row_grad(view[:, :valid], *(x[part] for x in per_row), out[:, :valid])
        out[:, valid:].zero_()


def implementation(logits: Tensor) -> ModuleType:
    """C for what it takes, where a compiler made it; else tiles. The two have a `top` of their own."""
    return native if native.takes(logits) else tiles
