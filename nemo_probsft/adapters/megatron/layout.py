"""Where this rank stands among the others, asked from Megatron's parallel state."""

from __future__ import annotations

from inspect import signature

import torch
from megatron.core import parallel_state
from megatron.core.utils import get_batch_on_this_cp_rank


def holds_the_loss() -> bool:
    """True on the one rank that writes: last pipeline stage, first of its tensor, data and context parallel groups."""
    return first_of_last_stage() and share_of_targets() == 0


def first_of_last_stage() -> bool:
    """True on the ranks that have log p of their data-parallel share, once: tensor parallel ranks have the same."""
    return (
        parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        and parallel_state.get_tensor_model_parallel_rank() == 0
    )


def share_of_targets() -> int:
    """Which of the shares of a batch this rank computes: a part of its examples, or of their tokens."""
    return parallel_state.get_data_parallel_rank(with_context_parallel=True)


def sharers() -> torch.distributed.ProcessGroup:
    """The ranks among which the targets of a batch are divided: data and context parallel ones."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def data_parallel() -> tuple[int, int]:
    """This rank among those that get different examples, and how many they are."""
    return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()


def context_parallel_size() -> int:
    return parallel_state.get_context_parallel_world_size()


def columns(num_columns: int) -> torch.Tensor:
    """[num_columns] int64: where in the sequence this rank's columns lie, which context parallelism divides."""
    whole = torch.arange(num_columns * context_parallel_size())
    # Megatron-Core 0.15 asks its parallel state for the group; newer ones would take all ranks where none is named.
    known = {"cp_group": parallel_state.get_context_parallel_group, "is_hybrid_cp": lambda: False}
    arguments = {name: known[name]() for name in signature(get_batch_on_this_cp_rank).parameters.keys() & known.keys()}
    return get_batch_on_this_cp_rank({"columns": whole[None]}, **arguments)["columns"][0]
