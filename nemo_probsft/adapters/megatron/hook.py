"""What every Megatron trainer shares: the per-token hook on the model and the loss function's return contract.

Source: megatron/core/models/common/language_module/language_module.py (compute_language_model_loss) and
megatron/core/pipeline_parallel/schedules.py (forward_step_calc_loss), megatron-core 0.15.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from megatron.core.transformer import TransformerConfig
from torch import nn

from nemo_probsft.adapters.megatron import head
from nemo_probsft.adapters.megatron.quantiles import NUM_BINS, QUANTILES, logit_counts, quantile
from nemo_probsft.config import HeadConfig
from nemo_probsft.config.exactness import MODEL_SETTINGS, SET_BY_THE_TRAINER, refused_setting
from nemo_probsft.loss import token_loss
from nemo_probsft.objectives import Objective
from nemo_probsft.ops import HeadReport, target_logprob

REPORT = ("objective", "nll", "p", "kept_fraction")
# One fp32 vector a micro-batch: [sum, count] of each of REPORT, the histogram of p, [skipped, total] of the weights.
STATISTICS_LENGTH = 2 * len(REPORT) + NUM_BINS + 2


def unwrap(module: nn.Module) -> nn.Module:
    """The Megatron-Core model inside DDP, precision and NeMo wrappers."""
    while isinstance(inner := getattr(module, "module", None), nn.Module):
        module = inner
    return module


def check_config(config: TransformerConfig) -> None:
    """Refuse a built model under whose settings Megatron would optimise something else than f(p). Raises ValueError."""
    if reason := refused_setting(vars(config), SET_BY_THE_TRAINER + MODEL_SETTINGS):
        raise ValueError(f"the model was built with {reason}; docs/exactness.md lists what is exact")


def install_target_logprob(
    chunks: Iterable[nn.Module],
    vocab_size: int,
    tp_group: torch.distributed.ProcessGroup | None,
    settings: HeadConfig,
    report: HeadReport,
) -> str | None:
    """Make the last pipeline stage return -log p of each target, [b, s] fp32, from `ops`.

    Instance attributes, not a subclass: NeMo's inference asks for exactly `GPTModel`. Returns in words whether the head
    skips rows and why not; None on the other stages.
    """
    said = None
    for chunk in map(unwrap, chunks):
        if not chunk.post_process:
            continue
        reason = head.why_not(chunk) if settings.skip_rows else "head.skip_rows is false"
        if reason is None:
            head.RowSparseHead(chunk, settings, vocab_size, report)
            said = "on: rows without a loss skip all its products, rows without a gradient the two of the backward pass"
        else:
            vars(chunk)["compute_language_model_loss"] = _TargetNLL(vocab_size, tp_group)
            said = f"off: {reason}"
    return said


class _TargetNLL:
    def __init__(self, vocab_size: int, tp_group: torch.distributed.ProcessGroup | None) -> None:
        self.vocab_size = vocab_size
        self.tp_group = tp_group

    def __call__(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """labels [b, s] int64, logits [s, b, v] -> -log p, [b, s] fp32."""
        logp = target_logprob(
            logits,
            labels.transpose(0, 1).contiguous(),
            tp_group=self.tp_group,
            vocab_size=self.vocab_size,
            inplace=True,
        )
        return -logp.transpose(0, 1).contiguous()


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
