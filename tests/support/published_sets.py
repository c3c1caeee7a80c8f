"""Tiny data sets in the schemas and file layouts in which the paper's sets are published."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

LANGUAGES = ("mar", "tel", "nep", "swa", "wol", "yor", "zul")

NUMINA_MATH = [
    {
        "source": "cn_k12",
        "problem": f"What is {i} + {i}?",
        "solution": f"Add them: $\\boxed{{{2 * i}}}$.",
        "messages": [
            {"content": f"What is {i} + {i}?", "role": "user"},
            {"content": f"Add them: $\\boxed{{{2 * i}}}$.", "role": "assistant"},
        ],
    }
    for i in range(6)
]
NUMINA_67K = [
    {
        "data_source": "AI-MO/NuminaMath-CoT-processed",
        "prompt": [{"content": f"{row['problem']} Let's think step by step.", "role": "user"}],
        "ability": "math",
        "reward_model": {"ground_truth": str(2 * i), "style": "rule"},
        "extra_info": {"answer": row["solution"], "index": i, "question": row["problem"], "split": "train"},
    }
    for i, row in enumerate(NUMINA_MATH)
]
QUESTION = "Which vitamin prevents scurvy?\nA. vitamin A\nB. vitamin B12\nC. vitamin C\nD. vitamin D"
M23K = [
    {
        "answer_idx": 2,
        "source": "MedQA",
        "metadata": "{}",
        "prompt": QUESTION,
        "answer_letter": "C",
        "answer_string": "vitamin C",
        "reasoning": "Okay, scurvy. Let me think.",
        "distilled_answer_string": "Scurvy is a lack of ascorbic acid.\n\nAnswer: C",
        "text": "<|im_start|>system ...",
    },
    {
        "answer_idx": 0,
        "source": "MedMCQA",
        "metadata": "{}",
        "prompt": "Which organ makes insulin?\nA. pancreas\nB. liver",
        "answer_letter": "A",
        "answer_string": "pancreas",
        "reasoning": "Hm.",
        "distilled_answer_string": None,
        "text": "",
    },
]
MAGICODER = [
    {
        "lang": "python",
        "raw_index": 7,
        "index": 3,
        "seed": "def f(x):\n",
        "openai_fingerprint": "fp_eeff13170a",
        "problem": "Write a function that doubles a number.",
        "solution": "```python\ndef double(x):\n    return 2 * x\n```",
    }
]
MAGPIE = [
    {
        "uuid": f"0000-{i}",
        "model": "meta-llama/Meta-Llama-3-70B-Instruct",
        "gen_input_configs": {"temperature": 1.0, "top_p": 1.0},
        "input": f"Tell me fact {i}.",
        "output": f"Fact {i} is this.",
        "conversations": [
            {"from": "human", "value": f"Tell me fact {i}."},
            {"from": "gpt", "value": f"Fact {i} is this."},
        ],
        "task_category": "Information seeking",
    }
    for i in range(8)
]
EVOL_INSTRUCT = [
    {"instruction": "Name a prime above 10.", "output": "11"},
    {"instruction": "Write a long poem.", "output": "la " * 1000},
    {"instruction": "Explain «ёлка» — in one word.", "output": "Spruce\u2028tree"},
    {"instruction": "Say nothing.", "output": ""},
]


def muri_it(language: str) -> list[dict]:
    return [
        {
            "input": f"{language}: तिमी को हौ? {i}",
            "output": f"{language} उत्तर {i}",
            "dataset_name": "MRI",
            "subdataset_name": "wikipedia",
            "language": language,
            "split": "train",
            "language_name": language.upper(),
        }
        for i in range(3)
    ]


def openbookqa(split: str, num_rows: int) -> list[dict]:
    return [
        {
            "id": f"{split}-{i}",
            "question_stem": f"Which is number {i} of {split}?",
            "choices": {"text": [f"{i}.{k}" for k in range(4)], "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[i % 4],
            "fact1": "numbers can be counted",
            "humanScore": 1.0,
            "clarity": 2.0,
            "turkIdAnonymized": "b356d338b7",
        }
        for i in range(num_rows)
    ]


def write(path: Path, records: list[dict]) -> Path:
    """In the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    else:
        path.write_text(json.dumps(records, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def write_all(root: Path) -> dict[str, Path]:
    """Local copies of the sets that are not generated, laid out as their repositories: domain -> `--source`."""
    write(root / "math/data/train-00000-of-00002.parquet", NUMINA_67K[:4])
    write(root / "math/data/train-00001-of-00002.parquet", NUMINA_67K[4:])
    write(root / "instruction/magpie.parquet", MAGPIE)
    write(root / "instruction/evol_instruct.json", EVOL_INSTRUCT)
    for language in LANGUAGES:
        write(root / f"low_resource/{language}/train-00000-of-00001.parquet", muri_it(language))
        write(root / f"low_resource/{language}/test-00000-of-00001.parquet", muri_it("test"))
    for split, num_rows in (("train", 40), ("validation", 10), ("test", 5)):
        write(root / f"openbookqa/{split}-00000-of-00001.parquet", openbookqa(split, num_rows))
    return {
        "math": root / "math",
        "medical": write(root / "medical/train.parquet", M23K),
        "instruction": root / "instruction",
        "coding": write(root / "data-oss_instruct-decontaminated.jsonl", MAGICODER),
        "low_resource": root / "low_resource",
        "openbookqa": root / "openbookqa",
        "openbookqa_noisy": root / "openbookqa",
    }
