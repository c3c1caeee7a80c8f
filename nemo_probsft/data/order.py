"""Which examples each step sees.

They depend on the seed, the number of examples, the global batch size and the step alone: not on the parallel layout,
the micro-batch size or where a run was resumed. As in the paper's runs, each epoch is a new permutation, and what is
left over after its last whole global batch is dropped; a run of `max_steps` that passes the end of an epoch starts the
next one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


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


def sample_of_each(num_targets: np.ndarray, files: np.ndarray, max_tokens: int, seed: int) -> np.ndarray:
    """[n] int64, ascending: `sample` of the examples of each file. files: [N] int64, from 0."""
    of_each = [np.flatnonzero(files == file) for file in np.unique(files)]
    return np.concatenate([own[sample(num_targets[own], max_tokens, seed)] for own in of_each])


def rank_micro_batches(indices: np.ndarray, micro_batch_size: int, dp_rank: int, dp_size: int) -> np.ndarray:
    """[num_micro_batches, micro_batch_size]: one data-parallel rank's share of a global batch."""
    if len(indices) % (micro_batch_size * dp_size):
        raise ValueError(
            f"global_batch_size {len(indices)} is not a multiple of micro_batch_size {micro_batch_size} x "
            f"data-parallel size {dp_size}"
        )
    return indices.reshape(-1, dp_size, micro_batch_size)[:, dp_rank]
