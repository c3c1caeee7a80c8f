"""AlpacaEval 2: instructions to answer; what the answers are worth, only a judge can say."""

from datasets import Dataset

from evaluation.tasks.answers import documents
from evaluation.tasks.sets import read_set


def load_instructions(*, file: str, dataset: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    rows = read_set(data_dir=data_dir, file=file, dataset=dataset, fields=["instruction", "dataset"])
    return documents([{"prompt": row["instruction"], "answer": "", "dataset": row["dataset"]} for row in rows])


def unjudged(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    """No score: evaluation/alpaca.py hands the answers to alpaca_eval."""
    return {"score": []}
