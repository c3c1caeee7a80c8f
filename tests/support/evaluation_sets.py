"""A tiny local test set for every task of the pack, in the layout of evaluation/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
from pyarrow import parquet

DEMO_PROMPTS = [f"{a}+{b}=" for a in (12, 7, 40, 3) for b in (34, 5, 9, 81)] + [
    f"{word}>" for word in "abcdefghijklmnop"
]
TOO_LONG = "long " * 250  # beyond the context of the tests' model
MATH = {
    "math_oai": [
        {"problem": "what is 1+1?", "answer": "2", "level": 1},
        {"problem": TOO_LONG, "answer": "\\frac{1}{2}"},
    ],
    "minerva_math": [{"problem": "half of 3.2?", "solution": "so $\\boxed{1.6} \\mathrm{~cm}$", "idx": 0}],
    "olympiadbench": [{"question": "which n?", "final_answer": ["$7$"], "id": 1}],
    "aime24": [{"problem": "how many?", "answer": "204"}],
    "amc23": [{"problem": "how far?", "answer": 27.0}],
}
MATH_GOLD = {"math_500": "2", "minerva_math": "1.6", "olympiadbench": "$7$", "aime24": "204", "amc23": "27"}
FIGFONT = [
    {"question": "What word does this say?\n\n _   _ ___ \n| |_| |_ _|\n|  _  || | \n|_| |_|___|\n", "answer": "HI"},
    {"question": "Please read the following figlet font:\n\n _  _  \n( \\/ ) \n \\__/  \n", "answer": "VO"},
]
MEDICAL_SOURCES = {
    "medmcqa": "MedMCQA_validation",
    "medqa": "MedQA_USLME_test",
    "pubmedqa": "PubMedQA_test",
    "mmlu_pro_medical": "MMLU-Pro_Medical_test",
    "gpqa_medical": "GPQA_Medical_test",
    "lancet": "Lancet",
    "medbullets_op4": "MedBullets_op4",
    "medbullets_op5": "MedBullets_op5",
    "medxpertqa": "MedXpertQA",
    "nejm": "NEJM",
}
MEDICAL_ROW = {
    "question": "Which vitamin prevents scurvy?",
    "options": {"A": "vitamin A", "B": "vitamin B", "C": "vitamin C", "D": None},
    "answer_idx": "C",
}
LANGUAGES = ("mr", "te", "ne", "sw", "wo", "yo", "zu")
PROX_ROW = {"question": "1+1=?", "category": "computer science", "answer": "B", "option_0": "1", "option_1": "2"} | {
    f"option_{number}": None for number in range(2, 10)
}
OPENBOOKQA_ROW = {
    "question_stem": "The sun is responsible for",
    "choices": {"label": ["A", "B", "C", "D"], "text": ["puppies", "children", "plants growing", "cats"]},
    "answerKey": "C",
    "fact1": "the sun is the source of energy",
}
HUMANEVAL_ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef add(a, b):\n    """Sum of a and b."""\n',
    "canonical_solution": "    return a + b\n",
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert math.pi\n",
}
MBPP_ROW = {
    "task_id": 2,
    "prompt": "Write a function to add two numbers.",
    "code": "def add(a, b):\n    return a + b\n",
    "test_imports": ["import math"],
    "test_list": ["assert add(1, 2) == 3", "assert math.isclose(add(0.1, 0.2), 0.3)"],
    "test": "assert add(-1, 1) == 0\nassert add(10**9, 1) == 10**9 + 1\n",
}
ALPACA_ROW = {"instruction": "Name a colour.", "dataset": "helpful_base", "output": "Red", "generator": "x"}


def write_sets(directory: Path, demo_answers: list[str]) -> None:
    """Every set, some as parquet. demo_answers: to DEMO_PROMPTS, in both demo sets."""
    directory.mkdir(parents=True)
    demo = [{"prompt": p, "response": r} for p, r in zip(DEMO_PROMPTS, demo_answers, strict=True)]
    for name, rows in {
        "strong_test": demo,
        "weak_test": demo,
        "intermediate_test": demo,
        "figfont": FIGFONT,
        **MATH,
    }.items():
        write_jsonl(directory / f"{name}.jsonl", rows)
    sources = {source: [MEDICAL_ROW] for source in MEDICAL_SOURCES.values()}
    (directory / "m1_eval_data.json").write_text(json.dumps(sources))
    for language in LANGUAGES:
        write_jsonl(directory / f"mmlu_prox_{language}.jsonl", [PROX_ROW])
    write_parquet(directory / "openbookqa.parquet", [OPENBOOKQA_ROW])
    write_jsonl(directory / "humaneval.jsonl", [HUMANEVAL_ROW])
    write_jsonl(directory / "humanevalplus.jsonl", [HUMANEVAL_ROW])
    write_parquet(directory / "mbppplus.parquet", [MBPP_ROW])
    write_jsonl(directory / "alpaca_eval.jsonl", [ALPACA_ROW])


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: list[dict]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
