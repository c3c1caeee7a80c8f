"""The LM head and the target log-prob in one op that spends matrix products only on rows that need them.

A row with loss_mask 0 never enters the head, forward or backward. A row whose upstream gradient is exactly 0, which is
what a threshold on p leaves, never enters the two backward products. Labels, mask and upstream gradient are replicated
over tensor parallel ranks, so all ranks choose the same rows without talking, and no collective depends on the choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemo_probsft.ops.logprob import check_top, empty_stats, implementation
from nemo_probsft.ops.targets import Shard, Targets


@dataclass
class HeadReport:
    """What the calls that got it and their backwards did: counts of rows, and sums of |dlogp| for `skip_below`.

    The sums stay on the device, float64, so that adding to them waits for nothing; read them once a step.
    """

    num_tokens: int = 0
    num_forward: int = 0
    num_backward: int = 0
    skipped_weight: float | Tensor = 0.0
    total_weight: float | Tensor = 0.0


def lm_head_logprob(
    hidden: Tensor,  # [..., H] fp32/bf16/fp16; [s/tp, ..., H] with sequence_parallel
    weight: Tensor,  # [v, H] this rank's rows of the output embedding, v = (padded V) / tp; same dtype
    labels: Tensor,  # [...] int64 global token ids; [s, ...] with sequence_parallel
    loss_mask: Tensor,  # as labels, 0/1 of any dtype
    *,
    tp_group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
    skip_below: float = 0.0,
    accumulate_main_grad: bool = False,
    rows: Tensor | None = None,  # [N] int64 on hidden's device, ascending: the unmasked ones of labels.reshape(-1)
    find_zeros: bool = True,
    report: HeadReport | None = None,
    top_logp: Tensor | None = None,  # as labels, fp32, filled
) -> Tensor:
    """log p(label) of logits = hidden @ weight.T, fp32 in the labels' shape; 0.0 where masked or ignored. top_logp gets
    the log p of the likeliest token, as in `target_logprob`; 0.0 where masked or ignored.

    Cost: 2 N H v FLOPs forward and 4 A H v backward, for N unmasked rows and A of them with a nonzero upstream
    gradient; one [N, v] buffer, which becomes the gradient. chunk_tokens bounds that buffer to [chunk_tokens, v] and
    adds 2 A H v to recompute it. Collectives: the all-gather of 12 bytes per row; with tp, an all-reduce of the A rows
    of dhidden, or with sequence_parallel the usual all-gather of hidden and reduce-scatter of dhidden.
    Gradient: exact for any dlogp. skip_below = tau > 0 drops the rows of smallest |dlogp| from the backward whose sum
    is at most tau times the whole sum. accumulate_main_grad adds dweight to weight.main_grad, as Megatron's
    gradient_accumulation_fusion does; for LoRA pass the merged weight, through which autograd goes on.
    Synchronisations on CUDA: forward one, or none if you pass `rows`, the positions where loss_mask is not 0 and the
    label is not ignore_index. They are not verified there. Backward one, which looks for rows whose gradient is 0; none
    with find_zeros=False, for objectives without a threshold. skip_below looks for its rows either way.
    Raises: ValueError as `target_logprob` does, and for shapes and options that cannot be.
    """
    shard = Shard.of(weight.shape[0], tp_group, vocab_size)
    _check(hidden, weight, labels, loss_mask, rows, shard, sequence_parallel, chunk_tokens, skip_below)
    check_top(top_logp, labels)
    if rows is None:
        rows = _rows(labels, loss_mask, ignore_index)
    else:
        _check_rows(rows, labels, loss_mask, ignore_index)
    options = _Options(sequence_parallel and shard.tp > 1, chunk_tokens, skip_below, find_zeros, accumulate_main_grad)
    report = HeadReport() if report is None else report
    Targets(labels, shard, ignore_index, rows).check()
    return _LmHead.apply(hidden, weight, labels, rows, shard, ignore_index, options, report, top_logp)


@dataclass(frozen=True)
class _Options:
    sequence_parallel: bool
    chunk_tokens: int | None
    skip_below: float
    find_zeros: bool
    accumulate_main_grad: bool


class _LmHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, rows, shard, ignore_index, options, report, top_logp) -> Tensor:
        every = _gather(hidden, shard) if options.sequence_parallel else hidden
        kept = _take(every.reshape(-1, hidden.shape[-1]), rows)
        steps, real = implementation(kept), weight[: shard.valid]
        stats = empty_stats(steps, len(rows), hidden.device, top_logp)
        make = torch.empty if len(rows) == labels.numel() else torch.zeros
        logp = make(labels.shape, dtype=torch.float32, device=hidden.device)
        top = None if top_logp is None else make(labels.shape, dtype=torch.float32, device=hidden.device)
        for chunk in _chunks(len(rows), options.chunk_tokens):
            logits = kept[chunk] @ real.t()
            steps.statistics(logits, Targets(labels, shard, ignore_index, rows[chunk]), stats[:, chunk], logp, top)
        if shard.tp > 1:
            steps.combine(shard.gather(stats), Targets(labels, shard, ignore_index, rows), stats, logp, top)
        if top is not None:
            top_logp.copy_(top)
        saved = () if options.chunk_tokens or not len(rows) else (logits,)
        ctx.save_for_backward(kept, weight, labels, rows, stats, *saved)
        ctx.shard, ctx.ignore_index, ctx.options, ctx.report = shard, ignore_index, options, report
        ctx.steps, ctx.shape = steps, hidden.shape
        report.num_tokens += labels.numel()
        report.num_forward += len(rows)
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx, dlogp: Tensor):
        kept, weight, labels, rows, stats, *saved = ctx.saved_tensors
        shard, options = ctx.shard, ctx.options
        active = _active_rows(dlogp, rows, options, ctx.report)
        if active is not None:
            kept, rows, stats = kept.index_select(0, active), rows[active], stats.index_select(1, active)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        real, dhidden = weight[: shard.valid], kept.new_empty(kept.shape)
        dweight = _WeightGradient(weight, shard.valid, options) if wants_weight else None
        for chunk in _chunks(len(rows), options.chunk_tokens):
            logits = saved[0] if saved else kept[chunk] @ real.t()
            select = active if saved else None
            dlogits = logits if select is None else logits.new_empty(len(rows), shard.valid)
            targets = Targets(labels, shard, ctx.ignore_index, rows[chunk])
            ctx.steps.gradient(logits, targets, stats[:, chunk], dlogp, dlogits, select)
            if wants_hidden:
                torch.mm(dlogits, real, out=dhidden[chunk])
            if dweight:
                dweight.add(dlogits, kept[chunk])
        dinput = _scatter(dhidden, rows, ctx.shape, shard, options) if wants_hidden else None
        return dinput, dweight.result() if dweight else None, *[None] * 7


class _WeightGradient:
    """Sum over chunks of dlogits.T @ hidden, into weight.main_grad, or in fp32 where there are several chunks."""

    def __init__(self, weight: Any, valid: int, options: _Options) -> None:
        self.weight, self.valid, self.fused = weight, valid, options.accumulate_main_grad
        self.dtype = torch.float32 if options.chunk_tokens else weight.dtype
        self.total = weight.main_grad if self.fused else None

    def add(self, dlogits: Tensor, hidden: Tensor) -> None:
        if self.total is None and self.valid == len(self.weight) and self.dtype == hidden.dtype:
            self.total = dlogits.t() @ hidden  # a buffer of zeros would cost one more pass over the weight's size
            return
        if self.total is None:
            self.total = self._zeros()
        total = self.total[: self.valid]
        if total.dtype == hidden.dtype:
            total.addmm_(dlogits.t(), hidden)
        elif hidden.is_cuda:
            total.add_(torch.mm(dlogits.t(), hidden, out_dtype=torch.float32))  # not rounded to bf16 in between
        else:
            total.addmm_(dlogits.t().float(), hidden.float())

    def _zeros(self) -> Tensor:
        return torch.zeros(self.weight.shape, dtype=self.dtype, device=self.weight.device)

    def result(self) -> Tensor:
        if not self.fused:
            return (self._zeros() if self.total is None else self.total).to(self.weight.dtype)
        # Megatron's DDP hook wants a gradient that it then ignores, or zeros where it adds it up all the same:
        # megatron/core/tensor_parallel/layers.py, LinearWithGradAccumulationAndAsyncCommunication.backward.
        self.weight.grad_added_to_main_grad = True
        make = torch.zeros_like if getattr(self.weight, "zero_out_wgrad", False) else torch.empty_like
        return make(self.weight)


def _rows(labels: Tensor, loss_mask: Tensor, ignore_index: int) -> Tensor:
    return ((loss_mask != 0) & (labels != ignore_index)).reshape(-1).nonzero().squeeze(1)


def _active_rows(dlogp: Tensor, rows: Tensor, options: _Options, report: HeadReport) -> Tensor | None:
    """[A] int64, ascending: which of the rows have a |dlogp| that is not 0, less the smallest ones up to a share
    skip_below of the sum. None for all of them."""
    active = None
    if options.skip_below > 0 and len(rows):
        weight = dlogp.reshape(-1)[rows].abs()
        order = weight.argsort(stable=True)  # the same on every rank, ties included
        cumulative = weight[order].double().cumsum(0)
        total = cumulative[-1]
        small = cumulative <= torch.where(total.isfinite(), options.skip_below * total, 0.0)  # NaN is not small
        active = order[~small].sort().values
        report.total_weight += total
        report.skipped_weight += torch.where(small, cumulative, 0.0).amax()
    elif options.find_zeros:
        active = dlogp.reshape(-1)[rows].nonzero().squeeze(1)  # NaN counts as nonzero
    if active is not None and len(active) == len(rows):
        active = None
    report.num_backward += len(rows if active is None else active)
    return active


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows] without a copy where they are all of them."""
    return x if len(rows) == len(x) else x.index_select(0, rows)


def _chunks(num_rows: int, chunk_tokens: int | None) -> list[slice]:
    step = chunk_tokens or max(num_rows, 1)
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def _gather(hidden: Tensor, shard: Shard) -> Tensor:
    every = hidden.new_empty(shard.tp * hidden.shape[0], *hidden.shape[1:])
    dist.all_gather_into_tensor(every, hidden.contiguous(), group=shard.group)
    return every


def _scatter(dkept: Tensor, rows: Tensor, shape: torch.Size, shard: Shard, options: _Options) -> Tensor:
    """dhidden of the op's input from the active rows' partial one, summed over the vocabulary shards."""
    if shard.tp > 1 and not options.sequence_parallel and len(rows):
        dist.all_reduce(dkept, group=shard.group)
    num_rows = shape[:-1].numel() * (shard.tp if options.sequence_parallel else 1)
    every = dkept
    if len(rows) < num_rows:
        every = dkept.new_zeros(num_rows, shape[-1]).index_copy_(0, rows, dkept)
    if not options.sequence_parallel:
        return every.view(shape)
    mine = dkept.new_empty(shape)
    dist.reduce_scatter_tensor(mine, every.view(shard.tp * shape[0], *shape[1:]), group=shard.group)
    return mine


def _check(hidden, weight, labels, loss_mask, rows, shard, sequence_parallel, chunk_tokens, skip_below) -> None:
    expected = list(hidden.shape[:-1])
    if sequence_parallel:
        expected[0] *= shard.tp
    if list(labels.shape) != expected or labels.shape != loss_mask.shape:
        shapes = f"labels {list(labels.shape)} and loss_mask {list(loss_mask.shape)}"
        raise ValueError(f"{shapes} must both be {expected}, hidden's shape before its last dimension")
    if hidden.shape[-1] != weight.shape[1] or hidden.dtype != weight.dtype:
        seen = f"hidden {list(hidden.shape)} {hidden.dtype}, weight {list(weight.shape)} {weight.dtype}"
        raise ValueError(f"{seen}: last dimensions and dtypes must agree")
    if rows is not None and (rows.dtype != torch.int64 or rows.device != hidden.device):
        raise ValueError(f"rows are {rows.dtype} on {rows.device}; pass int64 on {hidden.device}, where hidden lies")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; pass at least 1, or None for no chunks")
    if not 0 <= skip_below < 1:
        raise ValueError(f"skip_below is {skip_below}; pass a share in [0, 1)")


def _check_rows(rows: Tensor, labels: Tensor, loss_mask: Tensor, ignore_index: int) -> None:
    if not rows.is_cuda:
        found = _rows(labels, loss_mask, ignore_index)
        assert torch.equal(rows, found), "rows are not those that loss_mask and labels leave"
