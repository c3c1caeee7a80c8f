"""What every task of the pack shares: documents of prompt and answer, all repeated answers kept, means over items."""

import math

from datasets import Dataset

from evaluation.tasks.sets import read_set


def documents(docs: list[dict]) -> dict[str, Dataset]:
    """The test split. Every document has `prompt`, as in training (nemo_probsft/data/prompts.py), and `answer`."""
    return {"test": Dataset.from_list(docs)}


def load_rows(*, file: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    """The demo's sets: {"prompt", "response"}; they are made by `nemo-probsft demo`, not published."""
    rows = read_set(data_dir=data_dir, file=file, dataset="the demo's data", fields=["prompt", "response"])
    return documents([{"prompt": row["prompt"], "answer": row["response"]} for row in rows])


def keep_all(responses, docs):
    """Pass all `repeats` answers of an item on; without a filter list the harness keeps only the first (its #1232)."""
    return responses


def exact_match(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    """One 0/1 score per answer: the answer, without surrounding white space, is the expected one."""
    (answers,) = results
    return {"score": [float(answer.strip() == doc["answer"].strip()) for answer in answers]}


def mean_over_items(scores: list[list[float]]) -> float:
    """Mean over items of the mean over an item's answers (mean@n); NaN where nothing was scored."""
    means = [sum(item) / len(item) for item in scores if item]
    return sum(means) / len(means) if means else math.nan
