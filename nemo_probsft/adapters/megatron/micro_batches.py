"""The micro-batches of every step of a data-parallel rank: the same examples at every layout and after every resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from nemo_probsft.adapters.megatron.layout import columns, context_parallel_size
from nemo_probsft.config import Recipe
from nemo_probsft.data import batches, order
from nemo_probsft.data.packing import Packing
from nemo_probsft.data.tokens import Example, TokenizedDataset
from nemo_probsft.objectives import ENOUGH_TOKENS
from nemo_probsft.run import packed
from nemo_probsft.run.prepare import Prepared

NO_EXAMPLE = -1  # fills the last global batch of a forward pass up; a copy of example 0 without targets
Row = tuple[int, ...]  # examples of the data set


class MicroBatches:
    """`indices(step)`, the examples [global_batch_size] of a step, in rows dealt to the data-parallel ranks, collated.

    packing: which of them share a row; None: a row is an example.
    """

    def __init__(
        self,
        recipe: Recipe,
        prepared: Prepared,
        dataset: TokenizedDataset,
        indices: Callable[[int], np.ndarray],
        num_steps: int,
        packing: Packing | None = None,
    ) -> None:
        self.rows, self.indices, self.num_steps, self.packing = _Rows(dataset), indices, num_steps, packing
        self.positions, self.files = dataset.positions(), dataset.files()
        self.dealt: tuple[tuple[int, int, int], list[list[Row]]] | None = None  # the share last asked for by `examples`
        self.micro_batch_size = recipe.data.micro_batch_size
        self.num_rows = recipe.data.global_batch_size if packing is None else packing.num_rows  # of a step
        self.num_micro_batches = self.num_rows // (self.micro_batch_size * recipe.data_parallel_size)  # and of a rank
        self.max_length = round_up(recipe.data.max_length, length_multiple(recipe))  # of a micro-batch, in positions
        self.pad_id, self.length_multiple = prepared.pad_id, length_multiple(recipe)

    def collate(self, rows: Sequence[Sequence[Example]]) -> dict[str, torch.Tensor]:
        """The batch of a rank of Megatron's, in pinned memory where there is CUDA: the copy there waits for nothing."""
        cuda = torch.cuda.is_available()
        # Transformer Engine's attention is causal by itself, and takes the lengths of packed examples.
        settings: dict[str, Any] = {"pad_to_multiple_of": self.length_multiple, "attention_mask": not cuda}
        if self.packing is None:
            batch = batches.collate([example for (example,) in rows], self.pad_id, **settings)
        else:
            batch = batches.collate_packed(rows, self.pad_id, **settings)
        batch["loss_rows"] = loss_rows_of_rank(batch["loss_mask"])
        return {name: tensor.pin_memory() for name, tensor in batch.items()} if cuda else batch

    def of_step(self, step: int, dp_rank: int, dp_size: int) -> list[list[Row]]:
        """[num_micro_batches][micro_batch_size] rows: a data-parallel rank's share of a step, from 0."""
        indices = self.indices(step)
        if self.packing is None:
            dealt = order.rank_micro_batches(indices, self.micro_batch_size, dp_rank, dp_size)
            return [[(int(index),) for index in batch] for batch in dealt]
        share = self.packing.ranks(self.positions[indices].tolist(), dp_size)[dp_rank]
        return [[tuple(indices[row].tolist()) for row in batch] for batch in share]

    def from_step(self, step: int, dp_rank: int, dp_size: int) -> Iterator[list[Row]]:
        """The rank's micro-batches [micro_batch_size] of all steps from `step` on."""
        return (batch for k in range(step, self.num_steps) for batch in self.of_step(k, dp_rank, dp_size))

    def examples(self, step: int, micro_batch: int, dp_rank: int, dp_size: int) -> np.ndarray:
        """int64 [b, 1], or [b, s] of packed rows: the example of the data set that each position belongs to."""
        share = step, dp_rank, dp_size
        if self.dealt is None or self.dealt[0] != share:  # `prior` asks for every micro-batch of a step
            self.dealt = share, self.of_step(*share)
        rows = self.dealt[1][micro_batch]
        if self.packing is None:
            return np.array(rows)
        found = [np.repeat(row, self.positions[list(row)]) for row in rows]
        if torch.cuda.is_available():  # where `collate` joins them
            return np.concatenate(found)[None]
        longest = max(map(len, found))
        return np.stack([np.pad(row, (0, longest - len(row)), constant_values=NO_EXAMPLE) for row in found])


def training(recipe: Recipe, prepared: Prepared) -> MicroBatches:
    """Shuffled by epoch; step k sees the same examples at every layout."""
    dataset = TokenizedDataset.load(Path(prepared.examples))

    def indices(step: int) -> np.ndarray:
        return order.step_indices(len(dataset), recipe.data.global_batch_size, recipe.trainer.seed, step)

    packing = None if prepared.num_rows is None else packed.packing(recipe, prepared.num_rows)
    return MicroBatches(recipe, prepared, dataset, indices, prepared.num_steps, packing)


def forward_only(recipe: Recipe, prepared: Prepared) -> MicroBatches:
    """Every example that `diagnose.max_tokens` leaves, once, in the order of the file."""
    dataset = TokenizedDataset.load(Path(prepared.examples))
    drawn = order.sample(dataset.num_targets(), recipe.diagnose.max_tokens, recipe.trainer.seed)
    return _once(recipe, prepared, dataset, drawn)


def _once(recipe: Recipe, prepared: Prepared, dataset: TokenizedDataset, drawn: np.ndarray) -> MicroBatches:
    """These examples of the data set in batches, the last one filled up with rows that have no target."""
    size = recipe.data.global_batch_size

    def indices(step: int) -> np.ndarray:
        found = drawn[step * size : (step + 1) * size]
        return np.concatenate([found, np.full(size - len(found), NO_EXAMPLE)])

    return MicroBatches(recipe, prepared, dataset, indices, -(-len(drawn) // size))


def held_out(recipe: Recipe, prepared: Prepared) -> MicroBatches:
    """The validation set, or its first `validate.max_examples`, once, in the order of the file and never packed.

    A small one is one batch of only as many rows as the layout needs.
    """
    assert recipe.validate is not None
    assert prepared.validation is not None
    dataset = TokenizedDataset.load(Path(prepared.validation))
    num_examples = min(len(dataset), recipe.validate.max_examples or len(dataset))
    size = min(recipe.data.global_batch_size, round_up(num_examples, recipe.row_multiple))
    unpacked = replace(recipe, data=replace(recipe.data, packing=False, global_batch_size=size))
    return _once(unpacked, prepared, dataset, np.arange(num_examples))


def of_files(recipe: Recipe, prepared: Prepared) -> MicroBatches:
    """Of each training file examples with ENOUGH_TOKENS targets, drawn by the run's seed, or all; never packed."""
    dataset = TokenizedDataset.load(Path(prepared.examples))
    drawn = order.sample_of_each(dataset.num_targets(), dataset.files(), ENOUGH_TOKENS, recipe.trainer.seed)
    return _once(replace(recipe, data=replace(recipe.data, packing=False)), prepared, dataset, drawn)


class _Rows(Dataset):
    """The examples of a row."""

    def __init__(self, dataset: TokenizedDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, row: Row) -> list[Example]:
        return [self._blank() if index == NO_EXAMPLE else self.dataset[index] for index in row]

    def _blank(self) -> Example:
        example = self.dataset[0]
        return Example(example.input_ids, np.zeros_like(example.loss_mask))


def loss_rows_of_rank(loss_mask: torch.Tensor) -> torch.Tensor:
    """`batches.loss_rows` of a mask [b, s] of whole sequences, of the part that this context parallel rank gets."""
    return batches.loss_rows(loss_mask[:, columns(loss_mask.shape[1] // context_parallel_size())])


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def length_multiple(recipe: Recipe) -> int:
    """Sequence parallelism splits a sequence over tp ranks, context parallelism into 2 cp chunks."""
    parallel = recipe.parallel
    multiple = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    return multiple * (2 * parallel.context_parallel_size if parallel.context_parallel_size > 1 else 1)
