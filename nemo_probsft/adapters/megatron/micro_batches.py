"""The micro-batches of every step of a data-parallel rank: the same examples at every layout and after every resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from nemo_probsft.adapters.megatron.layout import columns, context_parallel_size
from nemo_probsft.config import Recipe
from nemo_probsft.data import batches, order
from nemo_probsft.data.tokens import Example, TokenizedDataset
from nemo_probsft.run.prepare import Prepared

NO_EXAMPLE = -1  # fills the last global batch of a forward pass up; a copy of example 0 without targets


class MicroBatches:
    """`indices(step)`, the examples [global_batch_size] of a step, dealt to the data-parallel ranks and collated."""

    def __init__(
        self,
        recipe: Recipe,
        prepared: Prepared,
        dataset: TokenizedDataset,
        indices: Callable[[int], np.ndarray],
        num_steps: int,
    ) -> None:
        self.dataset, self.indices, self.num_steps = _WithBlanks(dataset), indices, num_steps
        self.global_batch_size, self.micro_batch_size = recipe.data.global_batch_size, recipe.data.micro_batch_size
        self.max_length = round_up(recipe.data.max_length, length_multiple(recipe))  # of a micro-batch, in positions
        self.pad_id, self.length_multiple = prepared.pad_id, length_multiple(recipe)

    def collate(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """The batch of a rank of Megatron's, in pinned memory where there is CUDA: the copy there waits for nothing."""
        cuda = torch.cuda.is_available()
        batch = batches.collate(
            examples,
            self.pad_id,
            pad_to_multiple_of=self.length_multiple,
            attention_mask=not cuda,  # Transformer Engine's attention is causal by itself
        )
        batch["loss_rows"] = loss_rows_of_rank(batch["loss_mask"])
        return {name: tensor.pin_memory() for name, tensor in batch.items()} if cuda else batch

    def of_step(self, step: int, dp_rank: int, dp_size: int) -> np.ndarray:
        """[num_micro_batches, micro_batch_size] examples: a data-parallel rank's share of a step, from 0."""
        return order.rank_micro_batches(self.indices(step), self.micro_batch_size, dp_rank, dp_size)

    def from_step(self, step: int, dp_rank: int, dp_size: int) -> Iterator[np.ndarray]:
        """The rank's micro-batches [micro_batch_size] of all steps from `step` on."""
        return (examples for k in range(step, self.num_steps) for examples in self.of_step(k, dp_rank, dp_size))


def training(recipe: Recipe, prepared: Prepared) -> MicroBatches:
    """Shuffled by epoch; step k sees the same examples at every layout."""
    dataset = TokenizedDataset.load(Path(prepared.examples))

    def indices(step: int) -> np.ndarray:
        return order.step_indices(len(dataset), recipe.data.global_batch_size, recipe.trainer.seed, step)

    return MicroBatches(recipe, prepared, dataset, indices, prepared.num_steps)


def forward_only(recipe: Recipe, prepared: Prepared) -> MicroBatches:
    """Every example that `diagnose.max_tokens` leaves, once, in the order of the file."""
    dataset = TokenizedDataset.load(Path(prepared.examples))
    size = recipe.data.global_batch_size
    drawn = order.sample(dataset.num_targets(), recipe.diagnose.max_tokens, recipe.trainer.seed)

    def indices(step: int) -> np.ndarray:
        found = drawn[step * size : (step + 1) * size]
        return np.concatenate([found, np.full(size - len(found), NO_EXAMPLE)])

    return MicroBatches(recipe, prepared, dataset, indices, -(-len(drawn) // size))


class _WithBlanks(Dataset):
    def __init__(self, dataset: TokenizedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        if index == NO_EXAMPLE:
            example = self.dataset[0]
            return Example(example.input_ids, np.zeros_like(example.loss_mask))
        return self.dataset[index]


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
