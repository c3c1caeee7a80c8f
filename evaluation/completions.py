"""Answers of a model, before they are judged."""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Completion:
    """One answer. finish: "stop", "length" (cut at the token limit) or "prompt_too_long" (nothing was generated)."""

    text: str
    num_tokens: int
    finish: str


class Place(NamedTuple):
    """Which answer: that of an item of the data set, from 0, and of its repeated answers, from 0."""

    item: int
    repeat: int


class Speed(NamedTuple):
    """Of unfinished answers, too. num_tokens: generated so far. most_left: those that budgets still allow."""

    num_tokens: int
    most_left: int
