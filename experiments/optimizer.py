"""The recipes' optimizer for experiments in plain torch: AdamW as Megatron sets it up, with the recipes' schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_probsft.config import OptimConfig

OPTIM = OptimConfig()


def adamw(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """No weight decay on biases and norms, which are the parameters of one dimension."""
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim == 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=OPTIM.betas, eps=OPTIM.eps, weight_decay=OPTIM.weight_decay, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int) -> None:
    """The trainer's rate of a step, from 0: warm-up from lr / (warm-up steps + 1), then a cosine to 0."""
    warmup = round(OPTIM.warmup_ratio * steps)
    rising = (step + 1) / (warmup + 1)
    falling = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = lr * (rising if step <= warmup else falling)
