"""The tasks: the demo's continuum, and tasks on which an objective that follows the mean p may break."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.continuum import data
from nemo_probsft import demo_data
from nemo_probsft.data.tokens import Example

Rows = list[demo_data.Row]
TrainTest = tuple[Rows, Rows]


@dataclass(frozen=True)
class Task:
    """Fine-tuning rows, possibly with wrong answers, and clean test rows; both are functions of the seed."""

    name: str
    what: str
    rows: Callable[[int], TrainTest]
    batch_size: int = 64


def pretrain_rows() -> Rows:
    return demo_data.pretrain_rows(_rng(0, "pretrain"))


def strong(seed: int) -> TrainTest:
    return demo_data.strong_rows(_rng(seed, "strong"))


def weak(seed: int) -> TrainTest:
    return demo_data.weak_rows(_rng(seed, "weak"))


def intermediate(seed: int) -> TrainTest:
    return data.rows("intermediate", seed)


def two_ciphers(seed: int) -> TrainTest:
    return data.rows("weak_two_ciphers", seed)


def noisy(make: Callable[[int], TrainTest], share: float) -> Callable[[int], TrainTest]:
    """`share` of the training answers are replaced by the answer of another row that differs."""

    def rows(seed: int) -> TrainTest:
        train, test = make(seed)
        rng = _rng(seed, f"wrong {share}")
        answers = [row["response"] for row in train]
        for row in train[: round(share * len(train))]:
            row["response"] = rng.choice([a for a in rng.sample(answers, 4) if a != row["response"]])
        rng.shuffle(train)
        return train, test

    return rows


def few(make: Callable[[int], TrainTest], count: int) -> Callable[[int], TrainTest]:
    def rows(seed: int) -> TrainTest:
        train, test = make(seed)
        return train[:count], test

    return rows


def copies(seed: int) -> TrainTest:
    """Copies of words, which the base model knows, some of them wrong; the cipher has the same labels."""
    words = [row["prompt"].removeprefix("code:") for part in weak(seed + 1000) for row in part]
    rows = [{"prompt": f"copy:{word}", "response": word.removesuffix("=")} for word in words[:2000]]
    return noisy(lambda _: (rows, []), demo_data.WRONG_ANSWERS)(seed)


def mixed(make_known: Callable[[int], TrainTest], share: float) -> Callable[[int], TrainTest]:
    """What the base model knows, with `share` of the cipher that it does not; tested on the cipher."""

    def rows(seed: int) -> TrainTest:
        (known, _), (unknown, test) = make_known(seed), weak(seed)
        train = known + unknown[: round(share / (1 - share) * len(known))]
        _rng(seed, "mixed").shuffle(train)
        return train, test

    return rows


CONTINUUM = (
    Task("strong", "additions, 30 % wrong answers", strong),
    Task("intermediate", "both: `strong`, and 1,400 rows of the clean cipher; tested on both", intermediate),
    Task("weak", "the cipher", weak),
    Task("weak_noisy", "the cipher, 30 % wrong answers", noisy(weak, 0.3)),
)
BREAKS = (
    Task("weak_noisy_45", "the cipher, 45 % wrong answers", noisy(weak, 0.45)),
    Task("weak_noisy_60", "the cipher, 60 % wrong answers", noisy(weak, 0.6)),
    Task("weak_two_ciphers", "the cipher, 30 % answers by another cipher", two_ciphers),
    Task("weak_noisy_few", "the cipher, 30 % wrong answers, 1,000 rows", few(noisy(weak, 0.3), 1000)),
    Task("weak_noisy_batch_8", "the cipher, 30 % wrong answers, batch of 8", noisy(weak, 0.3), batch_size=8),
    Task("mixed_10", "90 % `strong`, 10 % the clean cipher; tested on the cipher", mixed(strong, 0.1)),
    Task(
        "mixed_20_copies",
        "80 % copies, 30 % of them wrong, 20 % the clean cipher; tested on the cipher",
        mixed(copies, 0.2),
    ),
)
TASKS = {task.name: task for task in CONTINUUM + BREAKS}


def source(row: demo_data.Row) -> int:
    """Which part of a mixture the row is from: additions, copies or the cipher."""
    return next((i for i, start in enumerate(("copy:", "code:"), 1) if row["prompt"].startswith(start)), 0)


def tokenize(tokenizer, rows: Sequence[demo_data.Row]) -> list[Example]:
    """Prompt, answer, end token; the loss covers the answer and its end, as in nemo_probsft/data/tokens.py."""
    examples = []
    for row in rows:
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        ids = [*prompt, *tokenizer(row["response"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        mask = [len(prompt) <= t + 1 < len(ids) for t in range(len(ids))]
        examples.append(Example(np.array(ids, dtype=np.int32), np.array(mask, dtype=np.uint8)))
    return examples


def _rng(seed: int, name: str) -> random.Random:
    return random.Random(f"{seed}/{name}")
