"""The LM head on the rows that need it: `ops.lm_head_logprob` in the place of Megatron's output layer and loss.

GPTModel passes hidden states to `output_layer` and its result to `compute_language_model_loss(labels, ...)`. Where
there are labels, the first hands hidden through and the second does both in one op. The output layer is called all the
same, because DDP gathers parameters in hooks of that call.

Source: megatron/core/models/gpt/gpt_model.py (_postprocess), megatron/core/tensor_parallel/layers.py
(ColumnParallelLinear), megatron-core 0.15.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear

from nemo_probsft.adapters.megatron.rows import HeadRows
from nemo_probsft.config import HeadConfig
from nemo_probsft.data.batches import IGNORED
from nemo_probsft.ops import HeadReport, lm_head_logprob


def why_not(chunk: GPTModel) -> str | None:
    """Why rows of this model's head cannot be skipped exactly; None where they can."""
    layer = chunk.output_layer
    if type(layer) is not ColumnParallelLinear:
        return f"the output layer is a {type(layer).__name__}, more than one product of hidden and weight"
    if layer.bias is not None:
        return "the output layer has a bias"
    if layer.gather_output:
        return "the output layer gathers its logits"
    if layer.disable_grad_reduce:
        return "somebody else reduces the output layer's gradient"
    if layer.config.defer_embedding_wgrad_compute:
        return "the output layer's weight gradient is deferred"
    if layer._forward_hooks:
        return "hooks of the output layer read its logits"
    if chunk.mtp_process:
        return "multi-token-prediction heads, which keep -log p of every token, use the same output layer"
    return None


class RowSparseHead:
    """Takes over the output layer and the loss of one last pipeline stage; `report` sums up what was computed."""

    def __init__(
        self, chunk: GPTModel, settings: HeadConfig, vocab_size: int, report: HeadReport, known: HeadRows
    ) -> None:
        assert why_not(chunk) is None
        self.layer: ColumnParallelLinear = chunk.output_layer
        self.settings, self.vocab_size, self.report, self.known = settings, vocab_size, report, known
        self.product = self.layer.forward
        self.weight: torch.Tensor | None = None
        self.has_labels = False
        chunk.register_forward_pre_hook(self._see_labels, with_kwargs=True)
        vars(self.layer)["forward"] = self._pass_through
        vars(chunk)["compute_language_model_loss"] = self._nll

    def _see_labels(self, chunk: GPTModel, args: tuple, kwargs: dict[str, Any]) -> None:
        self.has_labels = inspect.signature(chunk.forward).bind(*args, **kwargs).arguments.get("labels") is not None

    def _pass_through(
        self, hidden: torch.Tensor, weight: torch.Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, None]:
        if not self.has_labels:
            return self.product(hidden, weight=weight, runtime_gather_output=runtime_gather_output)
        self.weight = self.layer.weight if weight is None else weight  # given when it is the embedding's
        return hidden, None

    def _nll(self, labels: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """labels [b, s] int64, hidden [s, b, H], or [s/tp, b, H] with sequence parallelism -> -log p, [b, s] fp32."""
        labels = labels.transpose(0, 1)
        weight, self.weight = self.weight, None
        assert weight is not None
        logp = lm_head_logprob(
            hidden,
            weight,
            labels,
            labels != IGNORED,
            tp_group=self.layer.tp_group,
            sequence_parallel=self.layer.sequence_parallel,
            vocab_size=self.vocab_size,
            ignore_index=IGNORED,
            chunk_tokens=self.settings.chunk_tokens,
            skip_below=self.settings.skip_below,
            accumulate_main_grad=self.layer.gradient_accumulation_fusion,
            rows=self.known.take(labels.device),
            find_zeros=self.known.find_zeros,
            report=self.report,
            top_logp=self.known.make_top(labels),
        )
        return -logp.transpose(0, 1).contiguous()
