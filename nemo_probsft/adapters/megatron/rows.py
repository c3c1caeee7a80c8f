"""What goes past the model, to its head hook and from it: Megatron hands on tokens one way and a loss the other.

Which rows of the head a micro-batch needs the host knows since it was collated, so nobody asks the device. An engine's
data step drops the keys that it does not know. It gets its batch through `watch`, which notes them before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class HeadRows:
    """What the head hook learns from outside of the model, and `top_logp`, which it leaves; see `ops.lm_head_logprob`.

    find_zeros: whether the backward pass looks for rows without a gradient, which only a threshold leaves behind.
    wants_top: whether the objective goes by the model's confidence.
    """

    find_zeros: bool = True
    wants_top: bool = False
    rows: torch.Tensor | None = None  # [N] int64, on the host, of the micro-batch that goes through the model next
    top_logp: torch.Tensor | None = None  # [b, s] fp32, of the one that went through it last

    def watch(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches. One without `loss_rows`, of somebody else's data, has its rows found on the device."""
        return _Watched(batches, self)

    def take(self, device: torch.device) -> torch.Tensor | None:
        """The rows, once: they belong to one forward pass."""
        rows, self.rows = self.rows, None
        return None if rows is None else rows.to(device, non_blocking=True)

    def make_top(self, labels: torch.Tensor) -> torch.Tensor | None:
        """[s, b] fp32, for the op to fill; None where nobody wants it. labels: [s, b]."""
        if not self.wants_top:
            return None
        top_logp = torch.empty(labels.shape, dtype=torch.float32, device=labels.device)
        self.top_logp = top_logp.transpose(0, 1)
        return top_logp

    def take_top(self) -> torch.Tensor | None:
        """`top_logp`, once: it belongs to one forward pass."""
        top_logp, self.top_logp = self.top_logp, None
        return top_logp


class _Watched:
    def __init__(self, batches: Iterator[Any], seen: HeadRows) -> None:
        self.batches, self.seen = batches, seen

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = next(self.batches)
        content = batch[0] if isinstance(batch, tuple) else batch  # Lightning adds the batch's number
        self.seen.rows = content.get("loss_rows")
        return batch
