"""Quantiles of the target probability from a fixed histogram, whose counts add over micro-batches and ranks.

Bins are even in logit(p) = log p - log(1 - p), which resolves both p of 1e-8 and 1 - p of 1e-8; a quantile is exact to
one bin (a factor exp(1/8) in p or in 1 - p).
"""

from __future__ import annotations

import math

import torch

NUM_BINS = 320
LIMIT = 20.0
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def logit_counts(logp: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """Counts of supervised tokens by bin, fp32 [NUM_BINS]; logp fp32 [...], loss_mask [...] of the same shape.

    Exact, and so independent of the order in which a GPU adds, up to 2^24 tokens in a bin. Synchronisations: none; the
    others are counted 0 times, since leaving them out would ask the device how many there are.
    """
    logp = logp.detach().flatten()
    logit = logp - torch.log(-torch.expm1(logp))  # p = 1 gives +inf, the last bin
    bins = ((logit + LIMIT) * (NUM_BINS / (2 * LIMIT))).clamp(0, NUM_BINS - 1).nan_to_num().long()
    return logp.new_zeros(NUM_BINS).index_add_(0, bins, (loss_mask > 0).flatten().to(logp.dtype))


def quantile(counts: torch.Tensor, q: float) -> float:
    """The q-quantile of p, linear in logit(p) within its bin; NaN when nothing was counted."""
    cumulative = counts.double().cumsum(0)
    if cumulative[-1] == 0:
        return math.nan
    target = q * cumulative[-1]
    index = int(torch.searchsorted(cumulative, target))
    before = cumulative[index - 1] if index else 0.0
    inside = float((target - before) / counts[index])
    logit = (index + inside) * (2 * LIMIT / NUM_BINS) - LIMIT
    return 1 / (1 + math.exp(-logit))
