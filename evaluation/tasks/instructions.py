"""AlpacaEval 2: instructions to answer; what the answers are worth, only a judge can say."""

from datasets import Dataset

from evaluation.tasks.answers import documents
from evaluation.tasks.fields import text_of
from evaluation.tasks.sets import read_set


def load_instructions(*, file: str, dataset: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    fields = ["instruction", "dataset"]
    return documents(read_set(data_dir=data_dir, file=file, dataset=dataset, fields=fields, document=_document))


def _document(row: dict) -> dict:
    return {"prompt": text_of(row, "instruction"), "answer": "", "dataset": text_of(row, "dataset")}


def unjudged(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    """No score: evaluation/alpaca.py hands the answers to alpaca_eval."""
    return {"score": []}
