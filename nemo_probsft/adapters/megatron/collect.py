"""log p of every target of a forward pass, with where it stands: what `diagnose` measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nemo_probsft.adapters.megatron.rows import HeadRows
from nemo_probsft.ops import HeadReport


class CollectedLogp:
    """The targets of this rank, one entry a micro-batch."""

    def __init__(self) -> None:
        self.head, self.head_rows = HeadReport(), HeadRows()
        self.logp: list[torch.Tensor] = []
        self.example: list[np.ndarray] = []
        self.position: list[np.ndarray] = []  # of the target among the tokens of its example
        self.label: list[torch.Tensor] = []

    def see(
        self,
        nll: torch.Tensor,  # [b, s] fp32
        labels: torch.Tensor,  # [b, s] int64
        loss_mask: torch.Tensor,  # [b, s]
        examples: np.ndarray,  # [b, 1] int64, of the data set: a row is an example here
        columns: torch.Tensor,  # [s] int64, see `layout.columns`
    ) -> None:
        row, column = (loss_mask > 0).nonzero(as_tuple=True)
        self.logp.append(-nll[row, column].cpu())
        self.example.append(examples[row.cpu().numpy(), 0])
        self.position.append(1 + columns[column.cpu()].numpy())
        self.label.append(labels[row, column].cpu())

    def save(self, path: Path) -> None:
        """logp fp32 [T]; example, position, label int64 [T]."""
        np.savez(
            path,
            logp=torch.cat(self.logp).numpy(),
            example=np.concatenate(self.example),
            position=np.concatenate(self.position),
            label=torch.cat(self.label).numpy(),
        )
