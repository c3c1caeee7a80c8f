"""Whether training rows hold items of the evaluation sets in a directory, by exact questions and by their n-grams.

An item overlaps where one training row holds at least half of the item's distinct runs of NUM_WORDS words; case,
punctuation and white space do not count. Items of fewer words are compared as a whole only.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_probsft.data import prompts, records
from nemo_probsft.data.rows import FORMATS

NUM_WORDS = 8
SHARE = 0.5
WORD = re.compile(r"\w+")
# Where published sets have their question, the likeliest first; without one of them it is the longest text.
QUESTIONS = ("problem", "question", "question_stem", "prompt", "instruction", "input", "text")


@dataclass
class TestSet:
    name: str
    num_items: int = 0
    exact: dict[int, str] = field(default_factory=dict)  # item, from 1 -> the first training row with its question
    partial: dict[int, tuple[float, str]] = field(default_factory=dict)  # item -> share of its n-grams, training row


class Overlap:
    """An index of the sets; `add` compares a training row with all of them."""

    def __init__(self, directory: Path) -> None:
        self.sets: list[TestSet] = []
        self._questions: dict[str, list[tuple[int, int]]] = defaultdict(list)  # -> set, item
        self._ngrams: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._num_ngrams: dict[tuple[int, int], int] = {}
        if not directory.is_dir():
            raise ValueError(f"--data-dir: {directory} is no directory; name the one that holds the evaluation sets")
        for path in sorted(entry for entry in directory.iterdir() if entry.suffix in FORMATS):
            self._read(path)
        if not self.sets:
            raise ValueError(f"--data-dir: {directory} holds no {' or '.join(FORMATS)} file; name another")

    def add(self, questions: list[str], text: str, where: str) -> None:
        """A training row: the turns of its user, and all of its text."""
        for question in questions:
            for number, item in self._questions.get(_plain(question), ()):
                self.sets[number].exact.setdefault(item, where)
        found = Counter(key for ngram in set(_ngrams(text)) for key in self._ngrams.get(ngram, ()))
        for (number, item), num_shared in found.items():
            share = num_shared / self._num_ngrams[number, item]
            if share >= max(SHARE, self.sets[number].partial.get(item, (0.0, ""))[0] + 1e-9):
                self.sets[number].partial[item] = (share, where)

    def _read(self, path: Path) -> None:
        number, found = len(self.sets), TestSet(path.stem)
        for record in records.read_file(path):
            question = _question(record.fields)
            if question is None:
                continue
            found.num_items += 1
            key = (number, record.number)
            self._questions[_plain(question)].append(key)
            ngrams = set(_ngrams(question))
            self._num_ngrams[key] = len(ngrams)
            for ngram in ngrams:
                self._ngrams[ngram].append(key)
        self.sets.append(found)


def _question(fields: Any) -> str | None:
    if not isinstance(fields, Mapping):
        return None
    texts = {key: value for key, value in fields.items() if isinstance(value, str) and value.strip()}
    named = next((texts[key] for key in QUESTIONS if key in texts), None)
    return named or max(texts.values(), key=len, default=None)


def _plain(text: str) -> str:
    """Without the instructions of our prompts, case and white space."""
    for instruction in (prompts.BOXED, prompts.FIGFONT, prompts.CODE):
        text = text.replace(instruction, "")
    return " ".join(text.casefold().split())


def _ngrams(text: str) -> Iterator[str]:
    words = WORD.findall(text.casefold())
    return (" ".join(words[start : start + NUM_WORDS]) for start in range(len(words) - NUM_WORDS + 1))
