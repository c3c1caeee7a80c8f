"""Rows through the model between two steps, without training it: the same numbers for the same weights at every layout.

Megatron's own schedule runs the engine's model chunks forward. Nothing of training is touched: no random number is
drawn and no gradient is made.

Source: megatron/core/pipeline_parallel/schedules.py (get_forward_backward_func), megatron-core 0.15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import nn

from nemo_probsft.adapters.megatron.layout import columns, context_parallel_size, data_parallel
from nemo_probsft.adapters.megatron.micro_batches import MicroBatches
from nemo_probsft.adapters.megatron.rows import HeadRows

Batch = dict[str, torch.Tensor]
INPUTS = {"input_ids": "tokens", "position_ids": "position_ids", "attention_mask": "attention_mask", "labels": "labels"}
OF_POSITIONS = ("tokens", "position_ids", "labels", "loss_mask")  # [b, s], which context parallel ranks divide

# (-log p [b, s] fp32, the rank's batch) -> [n], what is kept of a micro-batch
Look = Callable[[torch.Tensor, Batch], torch.Tensor]


def looked_at(
    batches: MicroBatches, chunks: Sequence[nn.Module], head_rows: HeadRows, look: Look
) -> list[torch.Tensor]:
    """What `look` returns of each of this rank's micro-batches, on the last pipeline stage; nothing on the others.

    chunks: of this rank, with the hook on -log p, which `head_rows` belongs to. A batch says under "examples" which
    example each row is, int64 [b, 1].
    """
    run = get_forward_backward_func()
    rank, size = data_parallel()
    found: list[torch.Tensor] = []
    with _evaluated(chunks):
        for number in range(batches.num_steps):
            share = batches.of_step(number, rank, size)
            streams = [_stream(batches, share) for _ in chunks]
            found += run(
                forward_step_func=partial(_forward, head_rows, look),
                data_iterator=streams if len(chunks) > 1 else streams[0],
                model=list(chunks),
                num_microbatches=len(share),
                seq_length=batches.max_length,
                micro_batch_size=batches.micro_batch_size,
                forward_only=True,
            )
    return found


def _stream(batches: MicroBatches, share: list[list[tuple[int, ...]]]) -> Iterator[Batch]:
    for rows in share:
        yield batches.collate([batches.rows[row] for row in rows]) | {"examples": torch.tensor(rows)}


def _forward(
    head_rows: HeadRows, look: Look, stream: Iterator[Batch], chunk: nn.Module
) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Megatron's forward step: the chunk's output, and what looks at it on the last stage."""
    batch = next(head_rows.watch(stream))
    batch = {name: tensor.to(torch.cuda.current_device(), non_blocking=True) for name, tensor in batch.items()}
    if context_parallel_size() > 1:
        own = columns(batch["labels"].shape[1] // context_parallel_size()).to(batch["labels"].device)
        batch |= {name: batch[name][:, own] for name in OF_POSITIONS}
    output = chunk(**{name: batch.get(key) for name, key in INPUTS.items()})

    def keep(nll: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return nll.sum() * 0, (batch["loss_mask"] > 0).sum().int(), look(nll, batch)

    return output, keep


@contextmanager
def _evaluated(chunks: Sequence[nn.Module]) -> Iterator[None]:
    """Without gradients and in evaluation mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for chunk in chunks for module in chunk.modules()]
    for chunk in chunks:
        chunk.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
