"""The pretrained model of `make real-model`, and eight short rows for it."""

from __future__ import annotations

import json
from pathlib import Path

MODEL = Path(__file__).resolve().parents[2] / "runs" / "real" / "model"
ROWS = [  # from what the model knows to what it cannot
    ("What is the capital of France?", "The capital of France is Paris."),
    ("12 + 34 =", "46"),
    ("Spell 'probability' backward.", "ytilibaborp"),
    ("Say hello.", "Hello! How can I help you today?"),
    ("Name a primary colour.", "Red"),
    ("Repeat: the quick brown fox jumps over the lazy dog", "the quick brown fox jumps over the lazy dog"),
    ("x", "y"),
    ("Naïve café?", " 7\n"),
]


def write_rows(path: Path) -> None:
    lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in ROWS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def targets_of_a_row(tokenizer, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """(ids, positions of the targets), written by hand: the answer and its end token, prompt and answer apart."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    turns = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    before, answer = (tokenizer.backend_tokenizer.encode(text).ids for text in (turns, response))
    ids = [*before, *answer, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    return ids, list(range(len(before), len(ids)))
