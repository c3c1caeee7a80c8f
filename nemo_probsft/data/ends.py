"""Which tokens answers end with: those that a trained model writes to stop, whatever eos_token says."""

from __future__ import annotations

from typing import Any

import numpy as np

from nemo_probsft.data.rows import Row
from nemo_probsft.data.tokens import TokenizedDataset, token_ids

_PROBE = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]


def trained_ends(dataset: TokenizedDataset, tokenizer: Any, max_length: int) -> list[int]:
    """Ids of the tokens that the answers of a data set end with, the most frequent first.

    An answer that was cut at `max_length` has none; where all were cut it is the template's.
    """
    mask = dataset.loss_mask
    last = np.flatnonzero((mask[:-1] == 1) & (mask[1:] == 0)) + 1  # of each answer
    lengths = np.diff(dataset.offsets)
    cut = dataset.offsets[1:][lengths >= max_length] - 1
    ids, counts = np.unique(dataset.input_ids[np.setdiff1d(last, cut)], return_counts=True)
    special = _special_ids(tokenizer)
    found = [int(ids[i]) for i in np.argsort(-counts, kind="stable") if int(ids[i]) in special]
    return found or template_ends(tokenizer)


def template_ends(tokenizer: Any) -> list[int]:
    """The id that the chat template ends an answer with, eos_token's without a template.

    None where a template ends answers with no special token, or does not take a question and its answer.
    """
    if tokenizer.chat_template is None:
        return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    try:
        ids, is_target = token_ids(tokenizer, Row(_PROBE, "a question and its answer"))
    except ValueError:
        return []
    end = ids[max(i for i, target in enumerate(is_target) if target)]
    return [end] if end in _special_ids(tokenizer) else []


def _special_ids(tokenizer: Any) -> set[int]:
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return special | {tokenizer.eos_token_id}


def oddities(tokenizer: Any, ends: list[int]) -> list[str]:
    """What is odd about eos_token, in words."""
    found = []
    if tokenizer.eos_token_id not in ends:
        found.append(f"eos_token of the tokenizer is {tokenizer.eos_token}, which no answer ends with")
    if tokenizer.eos_token_id == tokenizer.bos_token_id:
        found.append(f"eos_token is bos_token: a text that begins with {tokenizer.eos_token} begins with its end")
    return found
