"""Log-probabilities of the target tokens from logits that are sharded over the vocabulary: the op behind every loss.

On CUDA a call is one launch forward and one backward; with tensor parallelism the all-gather and a small launch that
combines its result come on top.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_probsft.ops import cpu
from nemo_probsft.ops.targets import Shard, Targets


def target_logprob(
    logits: Tensor,  # [..., v] fp32/bf16/fp16, v = (padded V) / tp; any strides
    labels: Tensor,  # [...] int64 global token ids
    *,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    inplace: bool = False,
    top_logp: Tensor | None = None,  # [...] fp32, filled
) -> Tensor:
    """log p(label) in nats, fp32 [...], <= 0, bitwise equal on all ranks of tp_group; 0.0 where ignored.

    Columns from vocab_size on (padding) take no probability and no gradient. top_logp gets the log p of the likeliest
    token at each place, <= 0, likewise: bitwise equal on all ranks, 0.0 where ignored. It has no gradient.

    Cost: one read of the logits and one all-gather of 12 bytes per token and rank (16 with top_logp on a CPU); backward
    one read, one write and no collective. Scratch is bounded; nothing of the logits' size is made but the gradient.
    Gradient: dlogits = dlogp * (onehot - softmax) for any dlogp; rows where dlogp is 0 or the label is ignored are
    exact zeros, whatever the logits hold. With inplace=True it overwrites the logits, and a second backward raises
    RuntimeError.
    Raises: ValueError for shapes, dtypes or a vocab_size that cannot be, and for a label outside [0, vocab_size). On
    CUDA that last one would need a device synchronisation; there the row is NaN instead.
    """
    shard = Shard.of(logits.shape[-1] if logits.dim() else 0, tp_group, vocab_size)
    _check(logits, labels, inplace)
    check_top(top_logp, labels)
    Targets(labels, shard, ignore_index).check()
    return _TargetLogprob.apply(logits, labels, shard, ignore_index, inplace, top_logp)


class _TargetLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, shard, ignore_index, inplace, top_logp) -> Tensor:
        steps, order = implementation(logits), _by_stride(logits)
        targets = Targets(_permuted(labels, order), shard, ignore_index)
        stats = empty_stats(steps, labels.numel(), logits.device, top_logp)
        logp = torch.empty(targets.labels.shape, dtype=torch.float32, device=logits.device)
        top = None if top_logp is None else torch.empty_like(logp)
        steps.statistics(_permuted(logits, order), targets, stats, logp, top)
        if shard.tp > 1:
            steps.combine(shard.gather(stats), targets, stats, logp, top)
        if top is not None:
            top_logp.copy_(_restored(top, order))
        ctx.save_for_backward(logits, labels, stats)
        ctx.shard, ctx.ignore_index, ctx.inplace, ctx.steps, ctx.order = shard, ignore_index, inplace, steps, order
        return _restored(logp, order)

    @staticmethod
    @once_differentiable
    def backward(ctx, dlogp: Tensor):
        logits, labels, stats = ctx.saved_tensors
        targets = Targets(_permuted(labels, ctx.order), ctx.shard, ctx.ignore_index)
        source = _permuted(logits.detach(), ctx.order)
        grad = source if ctx.inplace else torch.empty(source.shape, dtype=logits.dtype, device=logits.device)
        ctx.steps.gradient(source, targets, stats, _permuted(dlogp, ctx.order), grad)
        return _restored(grad, ctx.order), *[None] * 5


def implementation(logits: Tensor) -> ModuleType:
    """Triton kernels on CUDA, and on a CPU when Triton's own switch asks for its interpreter."""
    return _kernels() if logits.is_cuda or os.environ.get("TRITON_INTERPRET") == "1" else cpu


def empty_stats(steps: ModuleType, num_rows: int, device: torch.device, top_logp: Tensor | None) -> Tensor:
    """What `steps` notes of each row, a number a row of the result."""
    count = 3 if top_logp is None else steps.NUM_STATS_WITH_TOP
    return torch.empty(count, num_rows, dtype=torch.float32, device=device)


def check_top(top_logp: Tensor | None, labels: Tensor) -> None:
    if top_logp is not None and (top_logp.dtype != torch.float32 or top_logp.shape != labels.shape):
        seen = f"{list(top_logp.shape)} {top_logp.dtype}"
        raise ValueError(f"top_logp is {seen}; pass float32 in the labels' shape {list(labels.shape)}")


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module("nemo_probsft.ops.kernels")


def _check(logits: Tensor, labels: Tensor, inplace: bool) -> None:
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"logits are {logits.dtype}; pass float32, bfloat16 or float16")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype}; pass int64 token ids")
    if logits.shape[:-1] != labels.shape or logits.dim() == 0:
        raise ValueError(
            f"logits {list(logits.shape)} and labels {list(labels.shape)} differ before the last dimension"
        )
    if inplace and any(size > 1 and step == 0 for size, step in zip(logits.shape, logits.stride(), strict=True)):
        raise ValueError("logits are expanded (stride 0), so their memory cannot hold the gradient; pass inplace=False")


def _by_stride(logits: Tensor) -> tuple[int, ...]:
    """The leading dimensions from the largest stride down, in which transposed logits are rows without a copy."""
    return tuple(sorted(range(logits.dim() - 1), key=logits.stride().__getitem__, reverse=True))


def _permuted(x: Tensor, order: tuple[int, ...]) -> Tensor:
    """x with its first dimensions in that order."""
    if order == tuple(range(len(order))):
        return x
    return x.permute((*order, *range(len(order), x.dim())))


def _restored(x: Tensor, order: tuple[int, ...]) -> Tensor:
    return _permuted(x, tuple(sorted(range(len(order)), key=order.__getitem__)))
