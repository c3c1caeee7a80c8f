"""The pretrained model of `make real-model`, eight short rows for it, and recipes that take both."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

MODEL = Path(__file__).resolve().parents[2] / "runs" / "real" / "model"
MODEL_BF16 = MODEL.with_name("model-bf16")
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


def write_recipe(root: Path, name: str, model: Path, objective: str, tp: int = 1, pp: int = 1) -> Path:
    """One step of `ROWS` in two micro-batches."""
    write_rows(root / "train.jsonl")
    recipe = {
        "run_dir": str(root / name),
        "model": {"path": str(model)},
        "data": {
            "train": str(root / "train.jsonl"),
            "max_length": 96,
            "global_batch_size": len(ROWS),
            "micro_batch_size": 4,
        },
        "objective": objective,
        "parallel": {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp},
        "optim": {"lr": 1e-5, "warmup_ratio": 0.0},
        "trainer": {"devices": tp * pp, "max_steps": 1, "precision": "fp32"},
    }
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def targets_of_a_row(tokenizer, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """(ids, positions of the targets), written by hand: the answer and its end token, prompt and answer apart."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    turns = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    before, answer = (tokenizer.backend_tokenizer.encode(text).ids for text in (turns, response))
    ids = [*before, *answer, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    return ids, list(range(len(before), len(ids)))


def collect_logp(job: dict, output: Path) -> None:
    """A rank of `tests.support.engine`: what `diagnose` measures, in the job's output."""
    from nemo_probsft import config
    from nemo_probsft.adapters.nemo import trainer
    from nemo_probsft.run.prepare import Prepared

    trainer.collect_logp(config.load(job["recipe"]), Prepared(**job["prepared"]), output.parent)
