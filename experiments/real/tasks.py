"""The real model's tasks, from weak to strong, and their files: `python -m experiments.real.tasks DIR [--sets DIR]`.

A seed draws a task's training rows from its pool, their wrong answers and their order. Validation and test items
are the same for all seeds, clean, and no prompt is in two of the three.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiments.real import data
from experiments.real.data import Item
from nemo_probsft.files import write_atomically

SEEDS = (0, 1, 2)
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 2_000, 100, 200
WRONG_ANSWERS = 0.3

Row = dict[str, str]


@dataclass(frozen=True)
class Task:
    """judged: "answer" is right or wrong to the letter; "likelihood" is that of held-out solutions.

    items: all of the task's, given the directory of --sets. noise: the share of training rows with a wrong answer.
    parts: the tasks that a mixture takes half of its rows from each; its rows say which under "source".
    """

    name: str
    what: str
    judged: str
    items: Callable[[Path | None], list[Item]] | None = None
    noise: float = 0.0
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    pool: list[Item]
    validation: list[Item]
    test: list[Item]


NOISY = f"{100 * WRONG_ANSWERS:.0f} % of the training answers wrong"
_TASKS = (
    Task("spell_backward", "words of 3 to 5 letters, spelled backward", "answer", data.spell_backward),
    Task("caesar", "words of 3 to 5 letters, each letter moved one place on", "answer", data.caesar),
    Task("caesar_noisy", f"`caesar`, {NOISY}", "answer", data.caesar, WRONG_ANSWERS),
    Task("chain_sum", "sums and differences of 2 to 4 numbers of 1 or 2 digits", "answer", data.chain_sum),
    Task("math", "MATH-500, solutions", "likelihood", data.math),
    Task("humaneval", "HumanEval, bodies of functions", "likelihood", data.humaneval),
    Task("mixture", "half `known_noisy`, half `caesar`; tested on both", "answer", parts=("known_noisy", "caesar")),
    Task("known_noisy", f"questions that the base model knows, {NOISY}", "answer", data.known_questions, WRONG_ANSWERS),
    Task("copy_noisy", f"sentences to repeat, {NOISY}", "answer", data.copy, WRONG_ANSWERS),
)
TASKS = {task.name: task for task in _TASKS}


def write_data(directory: Path, sets: Path | None = None) -> None:
    """Write <task>-<seed>.train.jsonl, <task>.validation.jsonl and <task>.test.jsonl; always the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        validation, test = held_out_rows(name, sets)
        _write(directory / f"{name}.validation.jsonl", validation)
        _write(directory / f"{name}.test.jsonl", test)
        for seed in SEEDS:
            _write(directory / f"{name}-{seed}.train.jsonl", train_rows(name, seed, sets))


def held_out_rows(name: str, sets: Path | None = None) -> tuple[list[Row], list[Row]]:
    """(validation, test). A mixture's are half of each part's, the first part's first."""
    task = TASKS[name]
    if task.parts:
        halves = [held_out_rows(part, sets) for part in task.parts]
        validation, test = (
            [row | {"source": part} for part, half in zip(task.parts, sides, strict=True) for row in half[: count // 2]]
            for sides, count in zip(zip(*halves, strict=True), (NUM_VALIDATION, NUM_TEST), strict=True)
        )
        return validation, test
    parts = split(name, sets)
    return [_row(item) for item in parts.validation], [_row(item) for item in parts.test]


def train_rows(name: str, seed: int, sets: Path | None = None) -> list[Row]:
    task = TASKS[name]
    rng = random.Random(f"{name}/{seed}")
    if task.parts:
        rows = [
            row | {"source": part}
            for part in task.parts
            for row in train_rows(part, seed, sets)[: NUM_TRAIN // len(task.parts)]
        ]
        rng.shuffle(rows)
        return rows
    pool = split(name, sets).pool
    drawn = rng.sample(pool, min(NUM_TRAIN, len(pool)))
    num_wrong = round(task.noise * len(drawn))
    rows = [_row(item) | {"response": _wrong(item, drawn, rng)} for item in drawn[:num_wrong]]
    rows += [_row(item) for item in drawn[num_wrong:]]
    rng.shuffle(rows)
    return rows


@cache
def split(name: str, sets: Path | None) -> Split:
    """Of a task that is no mixture. A small set is halved into test items and the others."""
    make = TASKS[name].items
    assert make is not None, name
    items = make(sets)
    prompts = {item.prompt for item in items}
    assert len(prompts) == len(items), f"{name}: a prompt is there twice"
    num_test = min(NUM_TEST, len(items) // 2)
    pool_from = num_test + min(NUM_VALIDATION, len(items) // 8)
    return Split(items[pool_from:], items[num_test:pool_from], items[:num_test])


def _wrong(item: Item, drawn: list[Item], rng: random.Random) -> str:
    if item.wrong is not None:
        return item.wrong(rng)
    return next(other.response for other in rng.sample(drawn, len(drawn)) if other.response != item.response)


def _row(item: Item) -> Row:
    return {"prompt": item.prompt, "response": item.response}


def _write(path: Path, rows: list[Row]) -> None:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sets", type=Path, help="directory of math_oai.jsonl and humaneval.jsonl; else from the hub")
    arguments = parser.parse_args()
    write_data(arguments.directory, arguments.sets)
