"""The tokenised set as a NeMo data module, in the order of `order.step_indices`: a resumed run continues it.

Source of the interface: nemo/lightning/pytorch/plugins/data_sampler.py (MegatronDataSampler), nemo-toolkit 2.6-2.7.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from megatron.core import parallel_state
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.utils.data import DataLoader, Dataset

from nemo_probsft.config import Recipe
from nemo_probsft.data import batches, order
from nemo_probsft.data.tokens import Example, TokenizedDataset
from nemo_probsft.run.prepare import Prepared

NO_EXAMPLE = -1  # fills the last global batch of a forward pass up; a copy of example 0 without targets


def training_data(recipe: Recipe, prepared: Prepared) -> SFTData:
    """Shuffled by epoch; step k sees the same examples at every layout."""
    dataset = TokenizedDataset.load(Path(prepared.examples))

    def indices(step: int) -> np.ndarray:
        return order.step_indices(len(dataset), recipe.data.global_batch_size, recipe.trainer.seed, step)

    return SFTData(recipe, prepared, dataset, indices, prepared.num_steps)


def forward_data(recipe: Recipe, prepared: Prepared) -> SFTData:
    """Every example that `diagnose.max_tokens` leaves once, in the order of the file."""
    dataset = TokenizedDataset.load(Path(prepared.examples))
    size = recipe.data.global_batch_size
    drawn = order.sample(dataset.num_targets(), recipe.diagnose.max_tokens, recipe.trainer.seed)

    def indices(step: int) -> np.ndarray:
        found = drawn[step * size : (step + 1) * size]
        return np.concatenate([found, np.full(size - len(found), NO_EXAMPLE)])

    return SFTData(recipe, prepared, dataset, indices, -(-len(drawn) // size))


class SFTData(pl.LightningDataModule):
    """`indices(step)` of every step, in this data-parallel rank's micro-batches."""

    def __init__(self, recipe, prepared, dataset, indices, num_steps) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.dataset = _WithBlanks(dataset)
        self.collate = functools.partial(
            batches.collate,
            pad_id=prepared.pad_id,
            pad_to_multiple_of=_length_multiple(recipe),
            attention_mask=not torch.cuda.is_available(),  # Transformer Engine's attention is causal by itself
        )
        # NeMo's validation and telemetry read these three off every data module.
        self.seq_length = round_up(recipe.data.max_length, _length_multiple(recipe))
        self.global_batch_size, self.micro_batch_size = recipe.data.global_batch_size, recipe.data.micro_batch_size
        self.data_sampler = _Sampler(indices, num_steps, self.seq_length, self.micro_batch_size, self.global_batch_size)

    def examples(self, step: int, micro_batch: int) -> np.ndarray:
        """[b] of the data set: this data-parallel rank's micro-batch of a step; both count from 0."""
        return self.data_sampler.micro_batches(step)[micro_batch]

    def setup(self, stage: str) -> None:
        # NeMo's count of consumed samples, and Megatron's micro-batch calculator, go on from the resumed step.
        assert self.trainer is not None
        self.data_sampler.init_global_step = self.trainer.global_step
        self.data_sampler.init_consumed_samples = self.trainer.global_step * self.global_batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader:
        return self.train_dataloader()


class _Sampler(MegatronDataSampler):
    """NeMo's sampler, with `_MicroBatches` for its own, whose length shrinks on resume and ends the epoch early."""

    def __init__(self, indices, num_steps, seq_length, micro_batch_size, global_batch_size) -> None:  # type: ignore[no-untyped-def]
        super().__init__(seq_length, micro_batch_size, global_batch_size, dataloader_type="single")
        self.indices, self.num_steps = indices, num_steps

    def micro_batches(self, step: int) -> np.ndarray:
        """[num_micro_batches, micro_batch_size]: this data-parallel rank's share of a step."""
        rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        return order.rank_micro_batches(self.indices(step), self.micro_batch_size, rank, size)

    def transform_dataloader(self, dataloader: DataLoader, consumed_samples: int = 0) -> DataLoader:
        size = parallel_state.get_data_parallel_world_size()
        steps = range(self.trainer.global_step, self.num_steps)
        num_batches = self.num_steps * self.global_batch_size // (self.micro_batch_size * size)
        micro_batches = _MicroBatches(
            (micro_batch for step in steps for micro_batch in self.micro_batches(step)), num_batches
        )
        return DataLoader(dataloader.dataset, batch_sampler=micro_batches, collate_fn=dataloader.collate_fn)


class _MicroBatches:
    """Its length counts from step 0, as Lightning's batch index does after a resume."""

    def __init__(self, micro_batches: Iterable[np.ndarray], num_batches: int) -> None:
        self.micro_batches, self.num_batches = micro_batches, num_batches

    def __iter__(self) -> Iterator[list[int]]:
        return (micro_batch.tolist() for micro_batch in self.micro_batches)

    def __len__(self) -> int:
        return self.num_batches


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


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _length_multiple(recipe: Recipe) -> int:
    """Sequence parallelism splits a sequence over tp ranks, context parallelism into 2 cp chunks."""
    parallel = recipe.parallel
    multiple = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    return multiple * (2 * parallel.context_parallel_size if parallel.context_parallel_size > 1 else 1)
