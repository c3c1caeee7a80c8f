"""The loss of a micro-batch in Megatron's form, and what is logged of it: sums that add over micro-batches and ranks.

Source: megatron/core/pipeline_parallel/schedules.py (forward_step_calc_loss), megatron-core 0.15.
"""

from __future__ import annotations

import torch

from nemo_probsft.adapters.megatron.quantiles import NUM_BINS, QUANTILES, logit_counts, quantile
from nemo_probsft.loss import token_loss
from nemo_probsft.objectives import Objective, parse_objective
from nemo_probsft.ops import HeadReport

REPORT = ("objective", "nll", "p", "kept_fraction")
# One fp32 vector a micro-batch: [sum, count] of each of REPORT, the histogram of p, [skipped, total] of the weights.
STATISTICS_LENGTH = 2 * len(REPORT) + NUM_BINS + 2


def loss_function(
    objective: Objective, denominator: str, nll: torch.Tensor, loss_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Megatron's 3-tuple: (loss_sum, num_tokens int32, statistics fp32 [STATISTICS_LENGTH]).

    With calculate_per_token_loss Megatron sums the first two over micro-batches, data and context parallel ranks and
    divides the gradient once (finalize_model_grads), so no term is divided here.
    """
    logp = -nll
    loss_sum, num_tokens, report = token_loss(objective, logp, loss_mask, denominator=denominator)
    weights = logp.new_zeros(2)  # known after the backward pass: see `add_weights`
    statistics = torch.cat([*(report[name] for name in REPORT), logit_counts(logp, loss_mask), weights])
    return loss_sum, num_tokens.to(torch.int32), statistics


def plain_loss(
    nll: torch.Tensor, loss_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """-log p of a micro-batch that is only looked at: Megatron's 3-tuple with nll and p as pairs."""
    plain = parse_objective("original")
    assert isinstance(plain, Objective)
    loss_sum, num_tokens, statistics = loss_function(plain, "target", nll, loss_mask)
    return loss_sum, num_tokens, {name: pair for name, pair in pairs(statistics).items() if name in ("nll", "p")}


def pairs(statistics: torch.Tensor) -> dict[str, torch.Tensor]:
    """[sum, count] of each of REPORT: what an engine may sum over micro-batches and ranks, and divide once."""
    return {name: statistics[2 * i : 2 * i + 2].clone() for i, name in enumerate(REPORT)}


def add_weights(statistics: torch.Tensor, report: HeadReport) -> None:
    """Adds what `skip_below` left out of the step's backward passes, and empties the report for the next step."""
    statistics[-2:] += statistics.new_tensor([report.skipped_weight, report.total_weight])
    vars(report).update(vars(HeadReport()))


def summarise(statistics: torch.Tensor) -> dict[str, float]:
    """Statistics summed over the global batch -> the step's metrics; the only division."""
    values = statistics.double().cpu()
    metrics = {}
    for i, name in enumerate(REPORT):
        total, count = values[2 * i], values[2 * i + 1]
        metrics[name] = float(total / count) if count else 0.0
    metrics["num_tokens"] = int(values[2 * REPORT.index("nll") + 1])
    skipped, total = values[-2:]
    if total:
        metrics["skipped_weight"] = float(skipped / total)
    counts = values[2 * len(REPORT) : -2]
    metrics.update({f"p_quantile_{round(100 * q)}": quantile(counts, q) for q in QUANTILES})
    return metrics
