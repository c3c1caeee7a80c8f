"""The least likely tokens and examples as text: they are often the noise of a training set."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from nemo_probsft.data.tokens import TokenizedDataset
from nemo_probsft.diagnosis.measures import example_means
from nemo_probsft.diagnosis.targets import Targets

NUM_SHOWN = 50
TOKENS_BEFORE, TOKENS_AFTER = 40, 20  # of context around a token
PROMPT_TOKENS, ANSWER_TOKENS = 100, 150  # shown of an example: the end of what comes before the answer, and its start


def least_likely_tokens(targets: Targets, dataset: TokenizedDataset, tokenizer: Any) -> list[dict[str, Any]]:
    """The targets with the lowest log p, the lowest first, between the text before and after them.

    row is the line of a .jsonl file or the row of another source, from 1, after the name of one of several files;
    position is the place in the answer, from 1.
    """
    p, place = targets.p, targets.place_in_answer()
    found = []
    for t in np.argsort(targets.logp, kind="stable")[:NUM_SHOWN]:
        example, position = int(targets.example[t]), int(targets.position[t])
        ids = dataset[example].input_ids
        start = max(0, position - TOKENS_BEFORE)
        parts = pieces(tokenizer, ids[start : position + 1 + TOKENS_AFTER])
        before, token, after = parts[: position - start], parts[position - start], parts[position - start + 1 :]
        found.append(
            {
                "row": dataset.place(example),
                "example": example,
                "position": int(place[t]),
                "logp": float(targets.logp[t]),
                "p": float(p[t]),
                "before": "".join(before),
                # A part of a character has no text of its own, but a name in the vocabulary.
                "token": token or tokenizer.convert_ids_to_tokens(int(ids[position])),
                "after": "".join(after),
            }
        )
    return found


def least_likely_examples(targets: Targets, dataset: TokenizedDataset, tokenizer: Any) -> list[dict[str, Any]]:
    """The examples with the highest mean nll, the highest first.

    answer: [text, p] of each token from the first target on, p None if it is no target; tokens_left_out: how many more
    there are.
    """
    p = targets.p
    examples, mean_nll, mean_p = example_means(targets)
    found = []
    for i in np.argsort(-mean_nll, kind="stable")[:NUM_SHOWN]:
        example = int(examples[i])
        span = slice(*np.searchsorted(targets.example, [example, example + 1]))
        ids, positions = dataset[example].input_ids, targets.position[span]
        first = int(positions[0])
        shown = ids[first : first + ANSWER_TOKENS]
        p_at = dict(zip(positions.tolist(), p[span].tolist(), strict=True))
        found.append(
            {
                "row": dataset.place(example),
                "example": example,
                "num_tokens": len(positions),
                "mean_nll": float(mean_nll[i]),
                "mean_p": float(mean_p[i]),
                "prompt": _text(tokenizer, ids[max(0, first - PROMPT_TOKENS) : first].tolist()),
                "answer": [[text, p_at.get(first + k)] for k, text in enumerate(pieces(tokenizer, shown))],
                "tokens_left_out": len(ids) - first - len(shown),
            }
        )
    return found


def pieces(tokenizer: Any, ids: np.ndarray) -> list[str]:
    """The text that each token [n] adds; joined, they are the whole text. A token that ends no character adds nothing.

    Cost: n decodes, since a token's text depends on what stands before it.
    """
    prefixes = [_text(tokenizer, ids[:end].tolist()) for end in range(len(ids) + 1)]
    # A prefix that ends within a character has a replacement mark there, which is not in the whole text.
    ends = np.maximum.accumulate([_num_equal(text, prefixes[-1]) for text in prefixes])
    return [prefixes[-1][start:end] for start, end in pairwise(ends)]


def _num_equal(a: str, b: str) -> int:
    """Characters that the beginnings of both share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)
