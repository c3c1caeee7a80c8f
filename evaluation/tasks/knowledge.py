"""OpenBookQA: four options, one letter."""

from datasets import Dataset

from evaluation.choices import explicit_letter
from evaluation.tasks.answers import documents
from evaluation.tasks.fields import letter_of, options_of, shown, text_of, texts_of
from evaluation.tasks.sets import read_set
from nemo_probsft.data.prompts import openbookqa

LETTERS = "ABCD"


def load_questions(*, file: str, dataset: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    fields = ["question_stem", "choices", "answerKey"]
    return documents(read_set(data_dir=data_dir, file=file, dataset=dataset, fields=fields, document=_document))


def _document(row: dict) -> dict:
    choices = row["choices"]
    if not isinstance(choices, dict) or not {"label", "text"} <= choices.keys():
        raise ValueError(f"choices is {shown(choices)}: must be an object with the lists label and text")
    labels, texts = choices["label"], texts_of(choices, "text")
    if labels != list(LETTERS[: len(texts)]):
        raise ValueError(
            f"choices.label is {shown(labels)}: must be a letter for each of {len(texts)} texts, from A on"
        )
    options = options_of(dict(zip(labels, texts, strict=True)), "choices")
    return {
        "prompt": openbookqa(text_of(row, "question_stem"), options),
        "answer": letter_of(row, "answerKey", options),
    }


def score(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    (answers,) = results
    letters = [explicit_letter(answer, LETTERS) for answer in answers]
    return {
        "score": [float(letter == doc["answer"]) for letter in letters],
        "letter_found": [float(letter is not None) for letter in letters],
    }
