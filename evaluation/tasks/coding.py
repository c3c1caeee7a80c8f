"""HumanEval, HumanEval+, MBPP, MBPP+: programs judged by running them with their tests."""

import re

from datasets import Dataset

from evaluation import programs
from evaluation.reasoning import without_reasoning
from evaluation.sandbox import passes
from evaluation.tasks.answers import documents
from evaluation.tasks.fields import shown, text_of, texts_of
from evaluation.tasks.sets import read_set
from nemo_probsft.data.prompts import code

ANSWER_START = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:\n"
    "```python\n"
)


def load_humaneval(*, file: str, dataset: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    fields = ["prompt", "entry_point", "test"]
    return documents(read_set(data_dir=data_dir, file=file, dataset=dataset, fields=fields, document=_humaneval))


def load_mbpp(*, file: str, dataset: str, plus: bool, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    """plus: EvalPlus's tests instead of the original three, the first of which the prompt shows, as EvalPlus's does."""
    fields = ["prompt", "test_list", "test_imports", "test"]
    docs = read_set(data_dir=data_dir, file=file, dataset=dataset, fields=fields, document=lambda row: _mbpp(row, plus))
    return documents(docs)


def _humaneval(row: dict) -> dict:
    prompt, entry_point, tests = (text_of(row, field) for field in ("prompt", "entry_point", "test"))
    if not re.search(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\b", prompt, re.MULTILINE):
        raise ValueError(f"entry_point is {shown(entry_point)}: must be a function that prompt begins")
    if "def check(" not in tests:
        raise ValueError(f"test is {shown(tests)}: must define check(candidate)")
    return _document(prompt, prompt, f"{tests}\ncheck({entry_point})\n", entry_point)


def _mbpp(row: dict, plus: bool) -> dict:
    shown_test, imports = texts_of(row, "test_list"), texts_of(row, "test_imports")
    if not shown_test:
        raise ValueError("test_list is []: must have a test")
    tests = text_of(row, "test") if plus else "\n".join([*imports, *shown_test, ""])
    return _document(f'"""\n{text_of(row, "prompt")}\n{shown_test[0]}\n"""', "", tests, "")


def _document(problem: str, preamble: str, tests: str, entry_point: str) -> dict:
    """preamble: code of the prompt (imports, helpers, the function's head) that the answer may rely on or continue."""
    return {
        "prompt": code(problem),
        "answer": tests,
        "answer_start": ANSWER_START,
        "preamble": preamble,
        "entry_point": entry_point,
    }


def score(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    """score: the program ran through all its tests. timed_out: it was stopped for time."""
    (answers,) = results
    runs = [passes(program(doc, answer), doc["answer"]) for answer in answers]
    return {"score": [float(run is True) for run in runs], "timed_out": [float(run is None) for run in runs]}


def program(doc: dict, answer: str) -> str:
    """What runs before the tests, see `programs.program`."""
    return programs.program(without_reasoning(answer), doc["preamble"], doc["entry_point"], doc["answer"])
