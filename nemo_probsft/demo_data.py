"""The demo's data: a tiny random base model and two tasks at the two ends of the model-capability continuum.

`strong`: additions the base model knows, with wrong answers among the fine-tuning targets (the base model is a better
teacher than the data). `weak`: a letter cipher the base model has never seen, although it can copy letters (the data is
the only teacher). Everything is a pure function of the seed.
"""

from __future__ import annotations

import json
import os
import random
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

PAD_TOKEN, EOS_TOKEN = "<pad>", "<|endoftext|>"
VOCAB_SIZE = (
    320  # 256 bytes, 2 special tokens, and reserved ones up to a multiple of 64 (tensor-parallel sizes divide it)
)
MAX_POSITIONS = 1024

OPERANDS = range(10, 100)
WORD_LENGTHS = (3, 6)
NUM_PRETRAIN = 40_000
ADDITIONS_IN_PRETRAIN = 0.75  # copying is learnt several times faster
NUM_STRONG_TRAIN = 2_000
NUM_WEAK_TRAIN = 8_000
NUM_TEST = 200
WRONG_ANSWERS = 0.3

Row = dict[str, str]


@dataclass(frozen=True)
class DemoFiles:
    """Where `make_demo` wrote its files; sets of rows are JSONL with `prompt` and `response`."""

    random_base: Path  # Hugging Face directory with tokenizer
    pretrain: Path
    strong_train: Path
    strong_test: Path
    weak_train: Path
    weak_test: Path


def make_demo(directory: Path, seed: int) -> DemoFiles:
    """Write the random base model and the sets of rows; the same seed writes the same bytes, over what is there."""
    directory.mkdir(parents=True, exist_ok=True)
    names = ("pretrain", "strong_train", "strong_test", "weak_train", "weak_test")
    files = DemoFiles(directory / "random_base", *(directory / f"{name}.jsonl" for name in names))
    write_tokenizer(files.random_base)
    write_random_base(files.random_base, seed)
    strong_train, strong_test = strong_rows(seeded(seed, "strong"))
    weak_train, weak_test = weak_rows(seeded(seed, "weak"))
    write_rows(files.pretrain, pretrain_rows(seeded(seed, "pretrain")))
    write_rows(files.strong_train, strong_train)
    write_rows(files.strong_test, strong_test)
    write_rows(files.weak_test, weak_test)
    write_rows(files.weak_train, weak_train)  # last: its presence says that everything is there
    return files


def pretrain_rows(rng: random.Random) -> list[Row]:
    """Additions and copies in random order; the cipher never occurs."""
    num_additions = round(ADDITIONS_IN_PRETRAIN * NUM_PRETRAIN)
    rows = [_addition(rng.choice(OPERANDS), rng.choice(OPERANDS)) for _ in range(num_additions)]
    rows += [
        {"prompt": f"copy:{word}=", "response": word} for word in islice(_words(rng), NUM_PRETRAIN - num_additions)
    ]
    rng.shuffle(rows)
    return rows


def strong_rows(rng: random.Random, wrong_answers: float = WRONG_ANSWERS) -> tuple[list[Row], list[Row]]:
    """(train, test): disjoint pairs of operands; `wrong_answers` of the training answers are another possible sum."""
    pairs = [(a, b) for a in OPERANDS for b in OPERANDS]
    rng.shuffle(pairs)
    rows = [_addition(a, b) for a, b in pairs]
    train, test = rows[NUM_TEST : NUM_TEST + NUM_STRONG_TRAIN], rows[:NUM_TEST]
    for row in train[: round(wrong_answers * len(train))]:
        sums = range(2 * OPERANDS[0], 2 * OPERANDS[-1] + 1)
        row["response"] = str(rng.choice([s for s in sums if str(s) != row["response"]]))
    rng.shuffle(train)
    return train, test


def weak_rows(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """(train, test): disjoint words under one substitution cipher that leaves no letter in place."""
    letters = list(string.ascii_lowercase)
    rng.shuffle(letters)
    cipher = str.maketrans(dict(zip(letters, letters[1:] + letters[:1], strict=True)))
    words = list(islice(_words(rng), NUM_TEST + NUM_WEAK_TRAIN))
    rows = [{"prompt": f"code:{word}=", "response": word.translate(cipher)} for word in words]
    return rows[NUM_TEST:], rows[:NUM_TEST]


def write_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer: one token a byte, so no text is unknown, pad and end tokens, no BOS, no chat template.

    It is Qwen2's tokenizer without merges (byte-level BPE, NFC, the same end token), because transformers 5 loads any
    tokenizer.json beside a Qwen2 model as Qwen2Tokenizer, with that class's own normalizer, pre-tokenizer and tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [PAD_TOKEN, EOS_TOKEN, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"<reserved_{i}>" for i in range(VOCAB_SIZE - len(tokens))]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)


def write_random_base(directory: Path, seed: int) -> None:
    """A random Qwen2 of 0.6 M parameters, fp32 safetensors. head_dim is 32: vLLM's CPU attention refuses 16."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Qwen2ForCausalLM(config).float().save_pretrained(directory, safe_serialization=True)


def _addition(a: int, b: int) -> Row:
    return {"prompt": f"{a}+{b}=", "response": str(a + b)}


def _words(rng: random.Random) -> Iterator[str]:
    """Endless distinct random words."""
    seen: set[str] = set()
    while True:
        word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(*WORD_LENGTHS)))
        if word not in seen:
            seen.add(word)
            yield word


def seeded(seed: int, task: str) -> random.Random:
    """The stream of one task: a task's rows do not depend on what else is made."""
    return random.Random(f"{seed}/{task}")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """JSON lines, complete or absent."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(partial, path)
