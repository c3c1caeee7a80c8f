"""OpenBookQA: four options, one letter."""

from datasets import Dataset

from evaluation.choices import explicit_letter
from evaluation.tasks.answers import documents
from evaluation.tasks.sets import read_set
from nemo_probsft.data.prompts import openbookqa


def load_questions(*, file: str, dataset: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    rows = read_set(data_dir=data_dir, file=file, dataset=dataset, fields=["question_stem", "choices", "answerKey"])
    return documents([_document(row) for row in rows])


def _document(row: dict) -> dict:
    options = dict(zip(row["choices"]["label"], row["choices"]["text"], strict=True))
    return {"prompt": openbookqa(row["question_stem"], options), "answer": row["answerKey"]}


def score(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    (answers,) = results
    letters = [explicit_letter(answer, "ABCD") for answer in answers]
    return {
        "score": [float(letter == doc["answer"]) for letter in letters],
        "letter_found": [float(letter is not None) for letter in letters],
    }
