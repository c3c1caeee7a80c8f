"""Tokens to batches: which examples step k sees, and the tensors made of them.

The examples of a global batch depend on the seed, the number of examples, the global batch size and the step alone: not
on the parallel layout, the micro-batch size or where a run was resumed. As in the paper's runs, each epoch is a new
permutation, and what is left over after its last whole global batch is dropped; a run of `max_steps` that passes the
end of an epoch starts the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from nemo_probsft.data import Example

IGNORED = -100  # the label of a position without a loss


def steps_per_epoch(num_examples: int, global_batch_size: int) -> int:
    if num_examples < global_batch_size:
        raise ValueError(
            f"the data has {num_examples} examples, fewer than one global batch: lower global_batch_size "
            f"{global_batch_size} or add data"
        )
    return num_examples // global_batch_size


@lru_cache(maxsize=2)
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """[num_examples] int64: the permutation of an epoch. NumPy promises never to change the streams of RandomState."""
    generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))
    order = generator.permutation(num_examples)
    order.setflags(write=False)
    return order


def step_indices(num_examples: int, global_batch_size: int, seed: int, step: int) -> np.ndarray:
    """[global_batch_size] int64: the examples of global step `step`, which counts from 0 over all epochs."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_examples, global_batch_size))
    start = step_in_epoch * global_batch_size
    return epoch_order(num_examples, seed, epoch)[start : start + global_batch_size]


def sample(num_targets: np.ndarray, max_tokens: int | None, seed: int) -> np.ndarray:
    """[n] int64, ascending: examples drawn until they hold `max_tokens` targets; every one of them at None.

    num_targets: [N] int64. Whole examples are drawn, so the last one may exceed the limit.
    """
    if max_tokens is None:
        return np.arange(len(num_targets))
    order = epoch_order(len(num_targets), seed, 0)
    enough = int(np.searchsorted(np.cumsum(num_targets[order]), max_tokens)) + 1
    return np.sort(order[:enough])


def rank_micro_batches(indices: np.ndarray, micro_batch_size: int, dp_rank: int, dp_size: int) -> np.ndarray:
    """[num_micro_batches, micro_batch_size]: one data-parallel rank's share of a global batch."""
    if len(indices) % (micro_batch_size * dp_size):
        raise ValueError(
            f"global_batch_size {len(indices)} is not a multiple of micro_batch_size {micro_batch_size} x "
            f"data-parallel size {dp_size}"
        )
    return indices.reshape(-1, dp_size, micro_batch_size)[:, dp_rank]


def padded_length(longest: int, multiple_of: int = 1) -> int:
    """Sequence length of a batch whose longest example has `longest` tokens: the last one is a label only."""
    return -(-(longest - 1) // multiple_of) * multiple_of


def collate(
    examples: Sequence[Example],
    pad_id: int,
    *,
    length: int | None = None,
    pad_to_multiple_of: int = 1,
    attention_mask: bool = True,
) -> dict[str, torch.Tensor]:
    """Pad b examples on the right to s positions: `length`, or the longest of them rounded up to `pad_to_multiple_of`.

    tokens, labels, position_ids [b, s] int64; loss_mask [b, s] fp32. labels are shifted: labels[t] is the token after
    tokens[t] where that is a target, which loss_mask says too, and -100 elsewhere. attention_mask [1, 1, s, s] bool,
    True where attention is forbidden (Megatron's convention): causal only, since padding is on the right of all that is
    real.
    """
    longest = max(len(example.input_ids) for example in examples)
    s = padded_length(longest, pad_to_multiple_of) if length is None else length
    assert longest - 1 <= s, f"an example of {longest} tokens does not fit {s} positions"
    assert s % pad_to_multiple_of == 0, f"{s} positions are no multiple of {pad_to_multiple_of}"
    tokens = torch.full((len(examples), s), pad_id, dtype=torch.int64)
    labels = torch.full((len(examples), s), IGNORED, dtype=torch.int64)
    loss_mask = torch.zeros(len(examples), s, dtype=torch.float32)
    for i, (ids, mask) in enumerate(examples):
        n = len(ids) - 1
        row = torch.tensor(ids, dtype=torch.int64)
        loss_mask[i, :n] = torch.tensor(mask[:-1], dtype=torch.float32)
        tokens[i, :n], labels[i, :n] = row[:-1], torch.where(loss_mask[i, :n] > 0, row[1:], IGNORED)
    batch = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask}
    batch["position_ids"] = torch.arange(s).expand(len(examples), s).contiguous()
    if attention_mask:
        batch["attention_mask"] = torch.ones(1, 1, s, s, dtype=torch.bool).triu(1)
    return batch
