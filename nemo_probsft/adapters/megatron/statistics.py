"""The loss of a micro-batch in Megatron's form, and what is logged of it: sums that add over micro-batches and ranks.

Source: megatron/core/pipeline_parallel/schedules.py (forward_step_calc_loss), megatron-core 0.15.
"""

from __future__ import annotations

import torch

from nemo_probsft.adapters.megatron.quantiles import NUM_BINS, QUANTILES, logit_counts, quantile
from nemo_probsft.loss import REPORT, token_loss
from nemo_probsft.objectives import Objective, parse_objective
from nemo_probsft.ops import HeadReport

# One fp32 vector: [sum, count] of each of REPORT, the histogram of p, [skipped, total] of the weights.
STATISTICS_LENGTH = 2 * len(REPORT) + NUM_BINS + 2


def loss_function(
    objective: Objective, denominator: str, nll: torch.Tensor, loss_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Megatron's 3-tuple: (loss_sum, num_tokens int32, statistics fp32 [STATISTICS_LENGTH]).

    With calculate_per_token_loss Megatron sums the first two over micro-batches, data and context parallel ranks and
    divides the gradient once (finalize_model_grads), so no term is divided here.
    """
    loss_sum, num_tokens, report = token_loss(objective, -nll, loss_mask, denominator)
    statistics = sum_of([torch.cat([*report.values()])])
    add_counts(statistics, nll, loss_mask)
    return loss_sum, num_tokens, statistics


def sum_of(pairs: list[torch.Tensor]) -> torch.Tensor:
    """Statistics fp32 [STATISTICS_LENGTH] from the pairs of micro-batches, each those of REPORT or the first of them.

    Padded before they are added, because torch adds in an order that depends on the width: a step that does not log
    must not move an adaptive objective by other bits.
    """
    every = torch.stack(pairs)
    return torch.nn.functional.pad(every, (0, STATISTICS_LENGTH - every.shape[1])).sum(0)


def add_counts(statistics: torch.Tensor, nll: torch.Tensor, loss_mask: torch.Tensor) -> None:
    """Adds the histogram of p of the tokens [...]."""
    statistics[2 * len(REPORT) : -2] += logit_counts(-nll, loss_mask)


def plain_loss(
    nll: torch.Tensor, loss_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """-log p of a micro-batch that is only looked at: Megatron's 3-tuple with nll and p as pairs."""
    plain = parse_objective("original")
    assert isinstance(plain, Objective)
    return token_loss(plain, -nll, loss_mask, names=("nll", "p"))


def add_weights(statistics: torch.Tensor, report: HeadReport) -> None:
    """Adds what `skip_below` left out of the step's backward passes."""
    if isinstance(report.total_weight, torch.Tensor):
        skipped = torch.as_tensor(report.skipped_weight)
        statistics[-2:] += torch.stack([skipped, report.total_weight]).to(statistics)


def summarise(statistics: torch.Tensor) -> dict[str, float]:
    """Statistics summed over the global batch -> the step's metrics; the only division."""
    values = statistics.cpu().double()
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
