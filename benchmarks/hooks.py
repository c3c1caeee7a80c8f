"""Putting what this package hooks into Megatron in and taking it out again, between two steps of one run."""

from __future__ import annotations

from typing import Any

import torch

from nemo_probsft.adapters.megatron.hook import install_target_logprob, unwrap
from nemo_probsft.adapters.megatron.norm import install_exact_norm
from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.config import HeadConfig


class Hooks:
    """Of one model chunk and its optimizer. Without them the model computes Megatron's fused cross entropy."""

    def __init__(
        self,
        chunk: torch.nn.Module,
        optimizer: Any,
        step: TrainingStep,
        vocab_size: int,
        tp_group: torch.distributed.ProcessGroup,
    ) -> None:
        self.model, self.optimizer, self.step = unwrap(chunk), optimizer, step
        self.vocab_size, self.tp_group = vocab_size, tp_group

    def install(self, *, skip_rows: bool) -> None:
        self.remove()
        head, step = HeadConfig(skip_rows=skip_rows), self.step
        install_target_logprob([self.model], self.vocab_size, self.tp_group, head, step.head, step.head_rows)
        install_exact_norm(self.optimizer)
        self.model.config.cross_entropy_loss_fusion = False

    def remove(self) -> None:
        vars(self.model).pop("compute_language_model_loss", None)
        vars(self.model.output_layer).pop("forward", None)
        self.model._forward_pre_hooks.clear()  # ours are the only ones of the whole model
        self.model._forward_pre_hooks_with_kwargs.clear()
        vars(self.optimizer).pop("get_grad_norm", None)
        self.step.micro_batches = []  # where there are none, nothing is reduced
        self.model.config.cross_entropy_loss_fusion = True
