"""The targets that were measured, and where each of them stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Targets(NamedTuple):
    """T target tokens in the order of the file, those of an example in the order of its text."""

    logp: np.ndarray  # [T] fp32, nats
    example: np.ndarray  # [T] int64, index in the tokenized set
    position: np.ndarray  # [T] int64, index among the tokens of the example
    label: np.ndarray  # [T] int64, the token's id
    top_logp: np.ndarray  # [T] fp32, nats, of the token that the model thinks likeliest there

    @property
    def p(self) -> np.ndarray:
        """[T] fp64."""
        return np.exp(self.logp.astype(np.float64))

    @property
    def top(self) -> np.ndarray:
        """[T] fp64: how sure the model is of the token that it thinks likeliest, its confidence."""
        return np.exp(self.top_logp.astype(np.float64))

    def place_in_answer(self) -> np.ndarray:
        """[T] int64, from 1. An answer is a run of targets: a conversation has several, and each starts at 1."""
        goes_on = (np.diff(self.example) == 0) & (np.diff(self.position) == 1)
        starts = np.flatnonzero(np.concatenate([[True], ~goes_on]))
        lengths = np.diff(np.append(starts, len(self.logp)))
        return np.arange(len(self.logp)) - np.repeat(starts, lengths) + 1


def collected(shards: Sequence[Mapping[str, np.ndarray]]) -> Targets:
    """The arrays of all data and context parallel ranks, in order. Raises ValueError for NaN or infinity."""
    targets = Targets(*(np.concatenate([shard[name] for shard in shards]) for name in Targets._fields))
    logp = targets.logp
    if bad := int((~np.isfinite(logp)).sum()):
        raise ValueError(f"model.path: log p of {bad} of {logp.size} targets is not finite; use another checkpoint")
    order = np.lexsort((targets.position, targets.example))
    return Targets(*(values[order] for values in targets))
