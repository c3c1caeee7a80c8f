"""`MicroBatches` as a NeMo data module: a resumed run continues the order.

Source of the interface: nemo/lightning/pytorch/plugins/data_sampler.py (MegatronDataSampler), nemo-toolkit 2.6-2.7.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import lightning.pytorch as pl
import numpy as np
from nemo.lightning.pytorch.plugins import MegatronDataSampler
from torch.utils.data import DataLoader

from nemo_probsft.adapters.megatron.layout import data_parallel
from nemo_probsft.adapters.megatron.micro_batches import MicroBatches, Row


class SFTData(pl.LightningDataModule):
    """The micro-batches of this data-parallel rank."""

    def __init__(self, micro_batches: MicroBatches) -> None:
        super().__init__()
        self.micro_batches = micro_batches
        # NeMo's validation and telemetry read these three off every data module. What it batches is rows.
        self.seq_length = micro_batches.max_length
        self.global_batch_size, self.micro_batch_size = micro_batches.num_rows, micro_batches.micro_batch_size
        self.data_sampler = _Sampler(micro_batches)

    def examples(self, step: int, micro_batch: int) -> np.ndarray:
        """See `MicroBatches.examples`: of this data-parallel rank."""
        return self.micro_batches.examples(step, micro_batch, *data_parallel())

    def setup(self, stage: str) -> None:
        # NeMo's count of consumed samples, and Megatron's micro-batch calculator, continue from the resumed step.
        assert self.trainer is not None
        self.data_sampler.init_global_step = self.trainer.global_step
        self.data_sampler.init_consumed_samples = self.trainer.global_step * self.global_batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.micro_batches.rows, collate_fn=self.micro_batches.collate)

    def val_dataloader(self) -> DataLoader:
        return self.train_dataloader()


class _Sampler(MegatronDataSampler):
    """NeMo's sampler, with `_BatchSampler` for its own, whose length shrinks on resume and ends the epoch early."""

    def __init__(self, micro_batches: MicroBatches) -> None:
        sizes = micro_batches.max_length, micro_batches.micro_batch_size, micro_batches.num_rows
        super().__init__(*sizes, dataloader_type="single")
        self.source = micro_batches

    def transform_dataloader(self, dataloader: DataLoader, consumed_samples: int = 0) -> DataLoader:
        rank, size = data_parallel()
        num_batches = self.source.num_steps * self.source.num_micro_batches
        batches = _BatchSampler(self.source.from_step(self.trainer.global_step, rank, size), num_batches)
        return DataLoader(dataloader.dataset, batch_sampler=batches, collate_fn=dataloader.collate_fn)


class _BatchSampler:
    """Its length counts from step 0, as Lightning's batch index does after a resume."""

    def __init__(self, micro_batches: Iterable[list[Row]], num_batches: int) -> None:
        self.micro_batches, self.num_batches = micro_batches, num_batches

    def __iter__(self) -> Iterator[list[Row]]:
        return iter(self.micro_batches)

    def __len__(self) -> int:
        return self.num_batches
