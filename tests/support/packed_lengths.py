"""Tasks for the ranks of `tests.support.engine`: what an engine makes of the lengths that packed rows have on a GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch


def joined_batch() -> dict[str, torch.Tensor]:
    """Examples that take 5, 8 and 3 positions, and 4 that pad them."""
    from nemo_probsft.data.batches import collate_packed
    from nemo_probsft.data.tokens import Example

    examples = [Example(np.arange(n, dtype=np.int32), np.ones(n, dtype=np.uint8)) for n in (6, 9, 4)]
    return collate_packed([examples[:2], examples[2:]], 0, pad_to_multiple_of=10, attention_mask=False)


def of_nemo(job: dict, output: Path) -> None:
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_thd
    from nemo.collections.llm.gpt.model.base import get_packed_seq_params, gpt_data_step

    _initialize()
    batch = gpt_data_step(iter([joined_batch()]))
    found = dataclasses.asdict(get_packed_seq_params(batch))
    rotated = _apply_rotary_pos_emb_thd(
        torch.ones(20, 1, 2), found["cu_seqlens_q"], angles(20), cp_group=torch.distributed.group.WORLD
    )
    torch.save(found | {"rotated": rotated}, output)


def of_bridge(job: dict, output: Path) -> None:
    from megatron.bridge.training.gpt_step import get_batch
    from megatron.bridge.training.utils.packed_seq_utils import get_packed_seq_params
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_thd
    from megatron.core.process_groups_config import ProcessGroupCollection

    _initialize()
    groups = ProcessGroupCollection.use_mpu_process_groups()
    settings = SimpleNamespace(model=None, dataset=SimpleNamespace(skip_getting_attention_mask_from_dataset=False))
    *_, packed = get_batch(iter([joined_batch()]), settings, pg_collection=groups)
    found = dataclasses.asdict(get_packed_seq_params(packed))
    rotated = _apply_rotary_pos_emb_thd(
        torch.ones(20, 1, 2), found["cu_seqlens_q"], angles(20), cp_group=torch.distributed.group.WORLD
    )
    torch.save(found | {"rotated": rotated}, output)


def angles(length: int) -> torch.Tensor:
    """[length, 1, 1, 2]: those of one frequency, at positions from 0."""
    return 0.1 * torch.arange(length, dtype=torch.float32)[:, None, None, None].expand(length, 1, 1, 2)


def _initialize() -> None:
    from megatron.core import parallel_state

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
