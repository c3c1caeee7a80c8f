"""Examples to the tensors of a micro-batch; `order` says which examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nemo_probsft.data.tokens import Example

IGNORED = -100  # the label of a position without a loss


def padded_length(longest: int, multiple_of: int = 1) -> int:
    """Sequence length of a batch whose longest example has `longest` tokens: the last one is a label only."""
    return -(-(longest - 1) // multiple_of) * multiple_of


def collate(
    examples: Sequence[Example],
    pad_id: int,
    *,
    length: int | None = None,
    pad_to_multiple_of: int = 1,
    attention_mask: bool = True,
) -> dict[str, torch.Tensor]:
    """Pad b examples on the right to s positions: `length`, or the longest of them rounded up to `pad_to_multiple_of`.

    tokens, labels, position_ids [b, s] int64; loss_mask [b, s] fp32. labels are shifted: labels[t] is the token after
    tokens[t] where that is a target, which loss_mask says too, and -100 elsewhere. loss_rows: see there.
    attention_mask [1, 1, s, s] bool, True where attention is forbidden (Megatron's convention): causal only, since
    padding is on the right of all that is real.
    """
    longest = max(len(example.input_ids) for example in examples)
    s = padded_length(longest, pad_to_multiple_of) if length is None else length
    assert longest - 1 <= s, f"an example of {longest} tokens does not fit {s} positions"
    assert s % pad_to_multiple_of == 0, f"{s} positions are no multiple of {pad_to_multiple_of}"
    tokens = torch.full((len(examples), s), pad_id, dtype=torch.int64)
    labels = torch.full((len(examples), s), IGNORED, dtype=torch.int64)
    loss_mask = torch.zeros(len(examples), s, dtype=torch.float32)
    for i, (ids, mask) in enumerate(examples):
        n = len(ids) - 1
        row = torch.tensor(ids, dtype=torch.int64)
        loss_mask[i, :n] = torch.tensor(mask[:-1], dtype=torch.float32)
        tokens[i, :n], labels[i, :n] = row[:-1], torch.where(loss_mask[i, :n] > 0, row[1:], IGNORED)
    batch = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "loss_rows": loss_rows(loss_mask)}
    batch["position_ids"] = torch.arange(s).expand(len(examples), s).contiguous()
    if attention_mask:
        batch["attention_mask"] = torch.ones(1, 1, s, s, dtype=torch.bool).triu(1)
    return batch


def loss_rows(loss_mask: torch.Tensor) -> torch.Tensor:
    """[N] int64, ascending: where the targets of a mask [b, s] lie for the LM head, whose rows are those of [s, b]."""
    return loss_mask.t().reshape(-1).nonzero().squeeze(1)
