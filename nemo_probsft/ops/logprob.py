"""Log-probabilities of the target tokens from logits that are sharded over the vocabulary: the op behind every loss."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_probsft.ops import native, tiles


def target_logprob(
    logits: Tensor,  # [..., v] fp32/bf16/fp16, v = (padded V) / tp; any strides
    labels: Tensor,  # [...] int64 global token ids
    *,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    inplace: bool = False,
) -> Tensor:
    """log p(label) in nats, fp32 [...], <= 0, bitwise equal on all ranks of tp_group; 0.0 where ignored.

    Columns from vocab_size on (padding) take no probability and no gradient.

    Cost: one read of the logits and one all-gather of 12 bytes per token and rank; backward one read, one write and no
    collective. Scratch is bounded; nothing of the logits' size is made but the gradient.
    Gradient: dlogits = dlogp * (onehot - softmax) for any dlogp; rows where dlogp is 0 or the label is ignored are
    exact zeros, whatever the logits hold. With inplace=True it overwrites the logits, and a second backward raises
    RuntimeError.
    Raises: ValueError for shapes, dtypes or a vocab_size that cannot be, and for a label outside [0, vocab_size). On
    CUDA that last one would need a device synchronisation; there the row is NaN instead.
    """
    group = Shard.of(logits.shape[-1] if logits.dim() else 0, tp_group, vocab_size)
    _check(logits, labels, inplace)
    group.check_labels(labels, ignore_index)
    return _TargetLogprob.apply(logits, labels, group, ignore_index, inplace)


@dataclass(frozen=True)
class Shard:
    """This rank's columns [start, start + width) of the vocabulary, of which the first `valid` are real tokens."""

    group: dist.ProcessGroup | None
    tp: int
    start: int
    width: int
    vocab_size: int

    @staticmethod
    def of(width: int, tp_group: dist.ProcessGroup | None, vocab_size: int | None) -> Shard:
        tp = 1 if tp_group is None else dist.get_world_size(tp_group)
        rank = 0 if tp_group is None else dist.get_rank(tp_group)
        total = tp * width
        if vocab_size is not None and not 0 < vocab_size <= total:
            raise ValueError(f"vocab_size is {vocab_size}, but the logits have {tp} x {width} columns; pass 1..{total}")
        return Shard(tp_group, tp, rank * width, width, total if vocab_size is None else vocab_size)

    @property
    def valid(self) -> int:
        return min(max(self.vocab_size - self.start, 0), self.width)

    def column(self, labels: Tensor) -> Tensor:
        """[T] int64 column of the label on this shard, -1 where it lies elsewhere or is no token."""
        column = labels - self.start
        return torch.where((column >= 0) & (column < self.valid), column, -1)

    def check_labels(self, labels: Tensor, ignore_index: int) -> None:
        if labels.is_cuda:
            return
        if (wrong := labels[self._wrong(labels, ignore_index)]).numel():
            raise ValueError(
                f"label {wrong[0].item()} is outside [0, {self.vocab_size}) and is not ignore_index {ignore_index}; "
                "check that the tokenizer and the model's vocab_size agree"
            )

    def _wrong(self, labels: Tensor, ignore_index: int) -> Tensor:
        return ((labels < 0) | (labels >= self.vocab_size)) & (labels != ignore_index)

    def combine(self, stats: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
        """Merges the shards' [3, T] statistics: (logp [T], scale [T]) with softmax_j = scale * exp(x_j - top).

        Cost: the op's only collective. Every rank sums the same numbers in the same order, so all agree bitwise.
        """
        every = stats.unsqueeze(0)
        if self.tp > 1 and stats.numel():
            every = stats.new_empty(self.tp * stats.shape[0], stats.shape[1])
            dist.all_gather_into_tensor(every, stats, group=self.group)
            every = every.view(self.tp, *stats.shape)
        tops, rests, targets = every.unbind(1)
        target = targets.sum(0)  # one shard holds it, the others hold 0
        top = torch.maximum(tops.amax(0), target)
        rest, z = (rests * (tops - top).exp()).sum(0), target - top
        odds = rest * torch.exp(-z)  # (1 - p) / p, so that p -> 1 loses nothing; overflows where log p is below -88
        logp = torch.where(odds < 1e30, -torch.log1p(odds), z - torch.log(rest + torch.exp(z)))
        logp = logp.masked_fill(labels == ignore_index, 0.0)
        scale = (stats[0] - top).exp() / (rest + torch.exp(z))
        wrong = self._wrong(labels, ignore_index)  # on CUDA only, see check_labels
        return logp.masked_fill(wrong, torch.nan), scale.masked_fill(wrong, torch.nan)


class _TargetLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, shard: Shard, ignore_index: int, inplace: bool) -> Tensor:
        order = _by_stride(logits)
        flat = labels.permute(order).reshape(-1)
        ignored, column = flat == ignore_index, shard.column(flat)
        rows_of = implementation(logits)
        stats = torch.empty(3, flat.numel(), dtype=torch.float32, device=logits.device)
        for view, rows in _row_views(logits.permute(*order, -1)):
            rows_of.row_stats(view[:, : shard.valid], column[rows], ignored[rows], stats[:, rows])
        logp, scale = shard.combine(stats, flat, ignore_index)
        ctx.save_for_backward(logits, column, ignored, stats[0].clone(), scale, logp)
        ctx.valid, ctx.order, ctx.inplace = shard.valid, order, inplace
        ctx.rows_of = rows_of  # each has a `top` of its own
        return _unpermute(logp, labels, order)

    @staticmethod
    @once_differentiable
    def backward(ctx, dlogp: Tensor):
        logits, column, ignored, top, scale, logp = ctx.saved_tensors
        g = dlogp.permute(ctx.order).reshape(-1).float().masked_fill(ignored, 0.0)
        target_grad = -g * torch.expm1(logp)
        source = logits.permute(*ctx.order, -1)
        dlogits = source if ctx.inplace else torch.empty(source.shape, dtype=logits.dtype, device=logits.device)
        for view, rows in _row_views(source):
            out = view if ctx.inplace else dlogits.view(-1, dlogits.shape[-1])[rows]
            args = column[rows], top[rows], scale[rows], g[rows], target_grad[rows]
            ctx.rows_of.row_grad(view[:, : ctx.valid], *args, out[:, : ctx.valid])
            out[:, ctx.valid :].zero_()
        return _unpermute(dlogits, logits, (*ctx.order, logits.dim() - 1)), None, None, None, None


def implementation(logits: Tensor) -> ModuleType:
    """Triton kernels on CUDA, and on CPU when Triton's own switch asks for its interpreter; else C, else tiles."""
    if logits.is_cuda or os.environ.get("TRITON_INTERPRET") == "1":
        return importlib.import_module("nemo_probsft.ops.kernels")
    return native if native.takes(logits) else tiles


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


def _unpermute(permuted: Tensor, like: Tensor, order: tuple[int, ...]) -> Tensor:
    shape = [like.shape[dim] for dim in order]
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return permuted.reshape(shape).permute(inverse)


def _row_views(x: Tensor, start: int = 0) -> list[tuple[Tensor, slice]]:
    """x [..., v] as (2-D view, its rows) pairs: one if the leading dimensions collapse, else one per outer index."""
    num_rows = x.shape[:-1].numel()
    try:
        return [(x.view(num_rows, x.shape[-1]), slice(start, start + num_rows))]
    except RuntimeError:  # "view size is not compatible": there is no cheaper way to ask
        inner = num_rows // x.shape[0]
        return [pair for i, part in enumerate(x) for pair in _row_views(part, start + i * inner)]
