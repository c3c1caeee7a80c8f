"""The continuum's four tasks on the demo's base model, and what FULL=1 adds; all functions of the seed.

`strong` and `weak` are the demo's. `intermediate`: additions of `strong`, wrong answers included, and the clean cipher,
about as many target tokens of each; tested on both. `weak_noisy`: the cipher with wrong answers, each that of another
row. FULL=1 has more levels of noise, and `weak_two_ciphers`: all wrong answers follow one other cipher.
"""

from __future__ import annotations

import random
import string
from pathlib import Path

from nemo_probsft.demo_data import NUM_TEST, Row, seeded, strong_rows, weak_rows, write_rows

NOISE = 0.3
NUM_CIPHER_IN_INTERMEDIATE = 1_400
TESTS = {  # task -> test set
    "strong": "strong",
    "intermediate": "intermediate",
    "weak": "weak",
    "weak_noisy": "weak",
    "weak_two_ciphers": "weak",
}


def make_continuum(directory: Path, seed: int) -> None:
    """Write <task>_train.jsonl and <test>_test.jsonl; the same seed writes the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    for task in TESTS:
        train, test = rows(task, seed)
        write_rows(directory / f"{TESTS[task]}_test.jsonl", test)
        write_rows(directory / f"{task}_train.jsonl", train)


def rows(task: str, seed: int, noise: float = NOISE) -> tuple[list[Row], list[Row]]:
    """(train, test) of a task; `noise`: the share of wrong answers in training where the task has them."""
    strong, weak = strong_rows(seeded(seed, "strong"), noise), weak_rows(seeded(seed, "weak"))
    if task == "strong":
        return strong
    if task == "weak":
        return weak
    if task == "weak_noisy":
        return _with_wrong_answers(weak[0], noise, seeded(seed, "weak_noisy")), weak[1]
    if task == "weak_two_ciphers":
        return _with_another_cipher(weak[0], noise, seeded(seed, "another cipher")), weak[1]
    assert task == "intermediate", task
    train = strong[0] + weak[0][:NUM_CIPHER_IN_INTERMEDIATE]
    seeded(seed, "intermediate").shuffle(train)
    half = NUM_TEST // 2
    return train, strong[1][:half] + weak[1][:half]


def _with_wrong_answers(train: list[Row], share: float, rng: random.Random) -> list[Row]:
    """A wrong answer is that of another row, so it is as long and as likely as the right ones."""
    answers = [row["response"] for row in train]
    changed = []
    for number, row in enumerate(train):
        others = [answer for answer in rng.sample(answers, 2) if answer != row["response"]]
        changed.append(row | {"response": others[0]} if number < round(share * len(train)) else row)
    rng.shuffle(changed)
    return changed


def _with_another_cipher(train: list[Row], share: float, rng: random.Random) -> list[Row]:
    """What is wrong is as regular as what is right."""
    letters = rng.sample(string.ascii_lowercase, 26)
    other = str.maketrans(dict(zip(letters, letters[1:] + letters[:1], strict=True)))
    changed = [row | {"response": row["response"].translate(other)} for row in train[: round(share * len(train))]]
    changed += train[len(changed) :]
    rng.shuffle(changed)
    return changed
