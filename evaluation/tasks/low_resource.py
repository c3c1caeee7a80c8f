"""MMLU-ProX, zero-shot in the question's own language."""

from datasets import Dataset
from lm_eval.tasks.mmlu_prox.lang_libs import LANG_LIBS, LANG_SUBJECTS

from evaluation.choices import explicit_letter
from evaluation.tasks.answers import documents
from evaluation.tasks.fields import letter_of, options_of, text_of
from evaluation.tasks.sets import read_set

LETTERS = "ABCDEFGHIJ"
OPTIONS = [f"option_{number}" for number in range(len(LETTERS))]


def load_questions(*, language: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    docs = read_set(
        data_dir=data_dir,
        file=f"mmlu_prox_{language}",
        dataset=f"li-lab/MMLU-ProX:{language}@test",
        fields=["question", *OPTIONS, "category", "answer"],
        document=lambda row: _document(row, language),
    )
    return documents(docs)


def _document(row: dict, language: str) -> dict:
    options = options_of(dict(zip(LETTERS, [row[option] for option in OPTIONS], strict=True)), "option_0 to option_9")
    return {"prompt": _prompt(row, options, language), "answer": letter_of(row, "answer", options)}


def _prompt(row: dict, options: dict[str, str], language: str) -> str:
    """The harness's words for the language: instruction, question, options, "let's think step by step"."""
    question_word, options_word, think, instruction, _, suffix = LANG_LIBS[language]
    subjects, category = LANG_SUBJECTS[language], text_of(row, "category").replace(" ", "_")
    if category not in subjects:
        raise ValueError(f"category is {row['category']!r}: must be one of {', '.join(subjects)}")
    told = instruction.format(subject=subjects[category], ans_suffix=suffix.format("X"))
    listed = [f"{letter}. {text}" for letter, text in options.items()]
    return "\n".join([told, question_word, text_of(row, "question"), options_word, *listed, think])


def score(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    (answers,) = results
    letters = [explicit_letter(answer, LETTERS) for answer in answers]
    return {
        "score": [float(letter == doc["answer"]) for letter in letters],
        "letter_found": [float(letter is not None) for letter in letters],
    }
