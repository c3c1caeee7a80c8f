"""What every task of the pack shares: documents of prompt and answer, all repeated answers kept, means over items."""

import math

from datasets import Dataset

from evaluation.reasoning import without_reasoning
from evaluation.tasks.fields import text_of
from evaluation.tasks.sets import read_set


def documents(docs: list[dict]) -> dict[str, Dataset]:
    """The test split. Every document has `prompt`, as in training (nemo_probsft/data/prompts.py), and `answer`."""
    return {"test": Dataset.from_list(docs)}


def load_rows(*, file: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    """The demo's sets: {"prompt", "response"}; they are made by `nemo-probsft demo`, not published."""
    fields = ["prompt", "response"]
    return documents(
        read_set(data_dir=data_dir, file=file, dataset="the demo's data", fields=fields, document=_document)
    )


def _document(row: dict) -> dict:
    return {"prompt": text_of(row, "prompt"), "answer": text_of(row, "response", may_be_empty=True)}


def keep_all(responses, docs):
    """Pass all `repeats` answers of an item on; without a filter list the harness keeps only the first (its #1232)."""
    return responses


def exact_match(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    """One 0/1 score per answer: the answer, without surrounding white space, is the expected one."""
    (answers,) = results
    said = [without_reasoning(answer).strip() for answer in answers]
    return {"score": [float(answer == doc["answer"].strip()) for answer in said]}


def mean_over_items(scores: list[list[float]]) -> float:
    """Mean over items of the mean over an item's answers (mean@n); NaN where nothing was scored."""
    means = [sum(item) / len(item) for item in scores if item]
    return sum(means) / len(means) if means else math.nan
