"""The hook on the model: its last pipeline stage returns -log p of each target, which `ops` computes.

Source: megatron/core/models/common/language_module/language_module.py (compute_language_model_loss),
megatron-core 0.15.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.utils import get_model_config
from torch import nn

from nemo_probsft.adapters.megatron import head
from nemo_probsft.adapters.megatron.rows import HeadRows
from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.config import HeadConfig
from nemo_probsft.config.exactness import MODEL_SETTINGS, SET_BY_THE_TRAINER, refused_setting
from nemo_probsft.ops import HeadReport, target_logprob


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
    known: HeadRows | None = None,
) -> str | None:
    """Make the last pipeline stage return -log p of each target, [b, s] fp32, from `ops`.

    Instance attributes, not a subclass: NeMo's inference asks for exactly `GPTModel`. known: which rows the head needs,
    where the host knows, else it finds them, and whether log p of the likeliest token is wanted, too. Returns in words
    whether the head skips rows and why not; None on the other stages.
    """
    said, known = None, known or HeadRows()
    for chunk in map(unwrap, chunks):
        if not chunk.post_process:
            continue
        reason = head.why_not(chunk) if settings.skip_rows else "head.skip_rows is false"
        if reason is None:
            head.RowSparseHead(chunk, settings, vocab_size, report, known)
            said = "on: rows without a loss skip all its products, rows without a gradient the two of the backward pass"
        else:
            vars(chunk)["compute_language_model_loss"] = _TargetNLL(vocab_size, tp_group, known)
            said = f"off: {reason}"
    return said


def reduce_before_gradients(
    chunks: Sequence[nn.Module], step: TrainingStep, group: torch.distributed.ProcessGroup
) -> None:
    """Have `step.reduce(group)` called once a step, before Megatron makes the gradients those of all ranks.

    There every rank waits for all others: where `reduce` finds that the loss is no number and raises, no rank makes the
    optimizer's step, on whatever pipeline stage. Both engines set `finalize_model_grads_func` before training starts.
    """
    config = get_model_config(chunks[0])
    finalize = config.finalize_model_grads_func

    def reduce_and_finalize(*args: Any, **kwargs: Any) -> None:
        if step.micro_batches:  # the loss is on the last pipeline stage
            step.reduce(group)
        finalize(*args, **kwargs)

    config.finalize_model_grads_func = reduce_and_finalize


class _TargetNLL:
    def __init__(self, vocab_size: int, tp_group: torch.distributed.ProcessGroup | None, known: HeadRows) -> None:
        self.vocab_size, self.tp_group, self.known = vocab_size, tp_group, known

    def __call__(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """labels [b, s] int64, logits [s, b, v] -> -log p, [b, s] fp32."""
        labels = labels.transpose(0, 1).contiguous()
        logp = target_logprob(
            logits,
            labels,
            tp_group=self.tp_group,
            vocab_size=self.vocab_size,
            inplace=True,
            top_logp=self.known.make_top(labels),
        )
        return -logp.transpose(0, 1).contiguous()
