"""The norm of the gradient, summed in float64: the one that is reported and the one that clips.

Megatron sums the squares in fp32 (megatron/core/optimizer/clip_grads.py, get_grad_norm_fp32, megatron-core 0.15-0.19),
on a CPU with torch's `norm`, which on the 28 M values of an embedding is 2e-3 low for random ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from megatron.core.optimizer import MegatronOptimizer

PART = 1 << 16  # values whose float64 copy stays in a CPU's cache


class ExactNorm:
    """`last`: the norm of the last step's gradient before clipping, on the host, where Megatron wants it to clip."""

    def __init__(self, optimizer: MegatronOptimizer) -> None:
        self.optimizer, self.last = optimizer, math.nan

    def __call__(self) -> float:
        self.last = grad_norm(self.optimizer)
        return self.last


def install_exact_norm(optimizer: MegatronOptimizer) -> ExactNorm:
    """Make the optimizer's step report, and clip by, a norm that is summed in float64 over the same ranks.

    An instance attribute, like the hook on the model: Megatron's optimizers ask themselves for `get_grad_norm`, and
    there is no setting for its precision. `tests/engines/test_inside_a_step.py` fails when Megatron's own is as good.
    """
    norm = ExactNorm(optimizer)
    vars(optimizer)["get_grad_norm"] = norm
    return norm


@torch.no_grad()
def grad_norm(optimizer: MegatronOptimizer) -> float:
    """The 2-norm over the parameters of all ranks, each once. One all-reduce of 8 bytes; waits for it."""
    grads = [grad for part in getattr(optimizer, "chained_optimizers", [optimizer]) for grad in _gradients(part)]
    total = sum_of_squares(grads, torch.cuda.current_device())
    torch.distributed.all_reduce(total, group=optimizer.get_grad_stats_parallel_group())
    return total.item() ** 0.5


def _gradients(optimizer: MegatronOptimizer) -> list[torch.Tensor]:
    """Those that Megatron counts: on this rank, neither shared nor copies of a tensor parallel rank's."""
    newer = getattr(optimizer, "get_grads_for_grad_norm", None)  # megatron-core 0.19
    return optimizer.get_main_grads_for_grad_norm() if newer is None else newer()


def sum_of_squares(tensors: Sequence[torch.Tensor], device: torch.device | int | str) -> torch.Tensor:
    """-> [] float64 on `device`, where the tensors are; 0 without any. Relative error below 1e-11 for any number.

    Memory: nothing of a tensor's size. On CUDA few launches for all tensors, whose kernels add in float64.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=device)
    if tensors[0].is_cuda:
        norms = list(torch._foreach_norm(list(tensors), 2, dtype=torch.float64))
    else:
        parts = (part for tensor in tensors for part in tensor.reshape(-1).split(PART))
        norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
    return torch.stack(norms).square().sum()
