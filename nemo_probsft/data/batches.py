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
    for i, example in enumerate(examples):
        n = len(example.input_ids) - 1
        _place(example, tokens[i, :n], labels[i, :n], loss_mask[i, :n])
    batch = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "loss_rows": loss_rows(loss_mask)}
    batch["position_ids"] = torch.arange(s).expand(len(examples), s).contiguous()
    if attention_mask:
        batch["attention_mask"] = torch.ones(1, 1, s, s, dtype=torch.bool).triu(1)
    return batch


def collate_packed(
    rows: Sequence[Sequence[Example]], pad_id: int, *, pad_to_multiple_of: int = 1, attention_mask: bool = True
) -> dict[str, torch.Tensor]:
    """Rows of several examples in a row, each with the tokens, labels and loss_mask that `collate` gives it.

    position_ids start anew in each example. What pads a row at its end is an example of its own without a loss. No
    token attends to another example:

    - attention_mask: [b, 1, s, s] bool, True where attention is forbidden, as `collate` has it;
    - without it, all rows are joined to one of T tokens, [1, T], with Megatron's lengths for Transformer Engine's
      variable-length attention: cu_seqlens [n + 1] int32, where each example starts and the last one ends;
      cu_seqlens_argmin int32, how many numbers these are; max_seqlen int32, the longest example's positions.
    """
    if not attention_mask:
        rows = [[example for row in rows for example in row]]
    spans = [[len(example.input_ids) - 1 for example in row] for row in rows]
    s = max(pad_to_multiple_of, padded_length(1 + max(map(sum, spans)), pad_to_multiple_of))
    tokens = torch.full((len(rows), s), pad_id, dtype=torch.int64)
    labels = torch.full((len(rows), s), IGNORED, dtype=torch.int64)
    loss_mask = torch.zeros(len(rows), s, dtype=torch.float32)
    for i, row in enumerate(rows):
        start = 0
        for example, n in zip(row, spans[i], strict=True):
            _place(example, *(tensor[i, start : start + n] for tensor in (tokens, labels, loss_mask)))
            start += n
        spans[i] += [s - start] * (start < s)
    batch = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "loss_rows": loss_rows(loss_mask)}
    batch["position_ids"] = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in spans])
    if attention_mask:
        batch["attention_mask"] = torch.stack([_forbidden(row) for row in spans])
        return batch
    (lengths,) = spans
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    numbers = {"cu_seqlens_argmin": len(ends), "max_seqlen": max(lengths)}
    return batch | {"cu_seqlens": ends} | {name: torch.tensor(n, dtype=torch.int32) for name, n in numbers.items()}


def _place(example: Example, tokens: torch.Tensor, labels: torch.Tensor, loss_mask: torch.Tensor) -> None:
    """Fill the views [L - 1] of a row with an example of L tokens."""
    ids = torch.tensor(example.input_ids, dtype=torch.int64)
    loss_mask.copy_(torch.tensor(example.loss_mask[:-1]))
    tokens.copy_(ids[:-1])
    labels.copy_(torch.where(loss_mask > 0, ids[1:], IGNORED))


def _forbidden(lengths: Sequence[int]) -> torch.Tensor:
    """[1, s, s] bool: attention across examples of these lengths, and to what comes later."""
    example = torch.repeat_interleave(torch.tensor(lengths))
    return ((example[:, None] != example) | torch.ones(len(example), len(example), dtype=torch.bool).triu(1))[None]


def loss_rows(loss_mask: torch.Tensor) -> torch.Tensor:
    """[N] int64, ascending: where the targets of a mask [b, s] lie for the LM head, whose rows are those of [s, b]."""
    return loss_mask.t().reshape(-1).nonzero().squeeze(1)
