"""`MicroBatches` as Bridge's data: an iterator a rank, from the step at which training starts.

Source of the interface: megatron/bridge/data/base.py (DatasetProvider), data/loaders.py, megatron-bridge 0.6.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from megatron.bridge.data.base import DatasetBuildContext, DatasetProvider

from nemo_probsft.adapters.megatron.layout import data_parallel
from nemo_probsft.adapters.megatron.micro_batches import MicroBatches


class SFTData(DatasetProvider):
    """start_step: how many steps the checkpoint has that training goes on from; validation gets the same batches."""

    def __init__(self, micro_batches: MicroBatches, start_step: int = 0) -> None:
        super().__init__(dataloader_type="external", num_workers=0)
        self.micro_batches, self.start_step = micro_batches, start_step
        # Without Transformer Engine, attention takes the batch's mask: its own would be made on a CUDA device. With it,
        # this is also how pipeline stages in the middle get a batch, whose packed lengths their attention needs.
        self.skip_getting_attention_mask_from_dataset = torch.cuda.is_available() and micro_batches.packing is None

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any, Any, None]:
        """Training and validation batches; Bridge asks for either and takes what it needs."""
        return self._batches(), self._batches(), None

    def examples(self, step: int, micro_batch: int) -> np.ndarray:
        """See `MicroBatches.examples`: of this data-parallel rank."""
        return self.micro_batches.examples(step, micro_batch, *data_parallel())

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        source = self.micro_batches
        for rows in source.from_step(self.start_step, *data_parallel()):
            yield source.collate([source.rows[row] for row in rows])
