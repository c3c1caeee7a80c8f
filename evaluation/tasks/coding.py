"""HumanEval, HumanEval+, MBPP, MBPP+: programs judged by running them with their tests."""

from datasets import Dataset

from evaluation.sandbox import passes
from evaluation.tasks.answers import documents
from evaluation.tasks.sets import read_set
from nemo_probsft.data.prompts import code

ANSWER_START = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:\n"
    "```python\n"
)


def load_humaneval(*, file: str, dataset: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    rows = read_set(data_dir=data_dir, file=file, dataset=dataset, fields=["prompt", "entry_point", "test"])
    return documents(
        [
            _document(row["prompt"], row["prompt"], f"{row['test']}\ncheck({row['entry_point']})\n", row["entry_point"])
            for row in rows
        ]
    )


def load_mbpp(*, file: str, dataset: str, plus: bool, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    """plus: EvalPlus's tests instead of the original three, the first of which the prompt shows, as EvalPlus's does."""
    fields = ["prompt", "test_list", "test_imports", "test"]
    rows = read_set(data_dir=data_dir, file=file, dataset=dataset, fields=fields)
    docs = []
    for row in rows:
        tests = row["test"] if plus else "\n".join([*row["test_imports"], *row["test_list"], ""])
        problem = f'"""\n{row["prompt"]}\n{row["test_list"][0]}\n"""'
        docs.append(_document(problem, "", tests, ""))
    return documents(docs)


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
    """The answer up to the end of its block; a bare function body continues the prompt's."""
    text = answer.split("```", 1)[0]
    if not doc["preamble"]:
        return text
    if f"def {doc['entry_point']}" in text:
        return _imports(doc["preamble"]) + text
    return doc["preamble"] + text


def _imports(prompt: str) -> str:
    """The prompt's code before its last function: imports and helpers."""
    return prompt[: prompt.rfind("\ndef ") + 1] if "\ndef " in prompt else ""
