"""log p of every target of a forward pass, with where it stands: what `diagnose` measures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch

from nemo_probsft.adapters.megatron.layout import first_of_last_stage, share_of_targets
from nemo_probsft.adapters.megatron.rows import HeadRows

PROGRESS = ".progress.jsonl"  # files of `diagnose`: micro-batches done, targets and the sum of their p, once a second
SECONDS = 1.0


class CollectedLogp:
    """The targets of this rank, one entry a micro-batch. directory: where `save` and the progress are written.

    head_rows: those of the head that computes log p; it is asked for log p of the likeliest token, too.
    """

    def __init__(self, directory: Path, head_rows: HeadRows) -> None:
        self.directory, self.head_rows = directory, head_rows
        self.head_rows.wants_top = True
        self.logp: list[torch.Tensor] = []
        self.top_logp: list[torch.Tensor] = []
        self.example: list[np.ndarray] = []
        self.position: list[np.ndarray] = []  # of the target among the tokens of its example
        self.label: list[torch.Tensor] = []
        self.num_targets, self.sum_p, self.next_line = 0, 0.0, 0.0

    def see(
        self,
        nll: torch.Tensor,  # [b, s] fp32
        labels: torch.Tensor,  # [b, s] int64
        loss_mask: torch.Tensor,  # [b, s]
        examples: np.ndarray,  # [b, 1] int64, of the data set: a row is an example here
        columns: torch.Tensor,  # [s] int64, see `layout.columns`
    ) -> None:
        row, column = (loss_mask > 0).nonzero(as_tuple=True)
        top_logp = self.head_rows.take_top()
        assert top_logp is not None
        self.logp.append(-nll[row, column].cpu())
        self.top_logp.append(top_logp[row, column].cpu())
        self.example.append(examples[row.cpu().numpy(), 0])
        self.position.append(1 + columns[column.cpu()].numpy())
        self.label.append(labels[row, column].cpu())
        self.num_targets += len(row)
        self.sum_p += float(self.logp[-1].exp().sum(dtype=torch.float64))
        if first_of_last_stage() and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + SECONDS
            with self._file(PROGRESS).open("a", encoding="utf-8") as file:
                file.write(json.dumps([len(self.logp), self.num_targets, self.sum_p]) + "\n")

    def save(self) -> None:
        """<data-parallel rank>.npz with logp, top_logp fp32 [T]; example, position, label int64 [T]."""
        if not first_of_last_stage():
            return
        np.savez(
            self._file(".npz"),
            logp=torch.cat(self.logp).numpy(),
            top_logp=torch.cat(self.top_logp).numpy(),
            example=np.concatenate(self.example),
            position=np.concatenate(self.position),
            label=torch.cat(self.label).numpy(),
        )

    def _file(self, suffix: str) -> Path:
        return self.directory / f"{share_of_targets()}{suffix}"
