"""What the fuzzer mutates: good rows, conversations and recipes, and changes after which a recipe stays good."""

from __future__ import annotations

from typing import Any

ROWS = [{"prompt": f"{i}+1=", "response": str(i + 1)} for i in range(8)]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "1", "function": {"name": "add", "arguments": {"a": 1, "b": "two"}}}
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b", "weight": 1, "tool_calls": [CALL], "reasoning_content": "c", "name": "d"},
    {"role": "tool", "content": "e", "tool_call_id": "1"},
    {"role": "assistant", "content": "f", "train": True},
]
TOOL_TEMPLATE = (
    "{{ tools | tojson }}{% for m in messages %}{{ m.role }}: {{ m.reasoning_content }}{{ m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}<|endoftext|>\n{% endfor %}"
    "{{ 'assistant: ' if add_generation_prompt }}"
)
GOOD = [
    {
        "run_dir": "runs/r",
        "model": {"path": "model"},
        "data": {"train": "train.jsonl", "max_length": 32, "global_batch_size": 4, "micro_batch_size": 2},
        "objective": "GeneralFamily-10",
        "parallel": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        "optim": {"lr": 5e-5, "weight_decay": 0.01, "betas": [0.9, 0.95], "warmup_ratio": 0.1, "schedule": "cosine"},
        "trainer": {"devices": 2, "max_steps": 1, "precision": "fp32", "seed": 0},
        "checkpoint": {"every_steps": 1, "keep_last": 2},
        "log": {"every_steps": 1},
        "export": {"at_end": True, "dtype": "bf16"},
        "diagnose": {"max_tokens": 100, "output": "d"},
    },
    {
        "model": {"path": "model"},
        "data": {
            "train": "train.jsonl",
            "global_batch_size": 8,
            "max_length": 64,
            "long_prompts": "skip",
            "validation": "held-out.jsonl",
        },
        "validate": {"every_steps": 1, "max_examples": 4},
        "checkpoint": {"every_steps": 1, "keep_best": "p"},
        "objective": {"name": "nll", "keep": {"min_percentile": 10, "diagnosis": "d.json"}, "denominator": "kept"},
        "optim": {"min_lr": 1e-6, "clip_grad": 0.0, "eps": 1e-6},
        "trainer": {"epochs": 2, "recompute": "full"},
    },
    {
        "model": {"path": "nemo"},
        "data": {"train": "train.jsonl", "global_batch_size": 2, "prompt_key": "prompt", "response_key": "response"},
        "objective": {"name": "power", "alpha": 0.5, "keep": {"min_p": 0.1, "max_p": 0.9}},
        "parallel": {"pipeline_model_parallel_size": 1},
        "trainer": {"devices": 1},
    },
]
# Changes that leave a recipe good, each alone and most of them together.
SOUND: list[tuple[str, Any]] = [
    *(
        ("objective", key)
        for key in ("original", "p", "OnlyTopLogP-0.2", "focal-2@0.1..0.9", "trsft-0.1", "convexity--1")
    ),
    *(("objective", {"name": "power", "alpha": alpha, "denominator": "kept"}) for alpha in (0, -1, 1e30, 0.5)),
    *(("objective", {"name": "unlikelihood", "keep": {"max_p": q}}) for q in (0, 1, 0.5, 5e-324)),
    *(("objective", {"name": "adaptive", "by": by, "shrinkage": 3}) for by in ("label", "confidence")),
    ("objective", {"name": "prior", "low": 0.2}),
    *(("optim.lr", lr) for lr in (1, 1e-5, 5e-324, 1e308)),
    *(("optim.schedule", schedule) for schedule in ("linear", "cosine")),
    *(("optim.betas", betas) for betas in ([0, 0], [0.9, 0.999999])),
    *(("optim.warmup_ratio", ratio) for ratio in (0, 1, 0.5)),
    *(("trainer.precision", precision) for precision in ("bf16", "fp32")),
    *(("trainer.recompute", recompute) for recompute in ("none", "selective", "full")),
    *(("trainer.attention_backend", backend) for backend in ("auto", "unfused", "local")),
    *(("trainer.seed", seed) for seed in (1, 2**32 - 1)),
    *(("checkpoint.keep_last", keep) for keep in (1, 2**31 - 1)),
    *(("data.max_length", length) for length in (20, 1024, 2048)),
    *(("data.micro_batch_size", size) for size in (1, 2)),
    *(("data.packing", choice) for choice in (True, False)),
    *(("data.long_prompts", choice) for choice in ("error", "skip")),
    *(("run_dir", name) for name in ("new", "./a/../b", "é", "1e5", "yes", "a b", "[/b]", "null", "x" * 250)),
    *(("log.wandb", {"project": project}) for project in ("p", "1e5", "[/b]")),
    *(("data.supervise", choice) for choice in ("answers", "last")),
    *(("data.train", given) for given in (["train.jsonl"], ["train.jsonl", {"path": "train.jsonl", "weight": 0.5}])),
    *(("data.validation", name) for name in ("train.jsonl", "held-out.jsonl")),
    ("data.train", [{"path": "train.jsonl", "max_rows": 4, "weight": 2}, {"path": "train.jsonl", "weight": 1000}]),
    ("data.chat_template", "chatml.jinja"),
    ("model.trust_remote_code", False),
    ("data.chat_template", "{% for m in messages %}{{ m.content }}<|endoftext|>\n{% endfor %}"),
]
