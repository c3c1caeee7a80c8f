"""MMLU-ProX, zero-shot in the question's own language."""

from datasets import Dataset
from lm_eval.tasks.mmlu_prox.lang_libs import LANG_LIBS, LANG_SUBJECTS

from evaluation.choices import explicit_letter
from evaluation.tasks.answers import documents
from evaluation.tasks.sets import read_set

LETTERS = "ABCDEFGHIJ"
OPTIONS = [f"option_{number}" for number in range(len(LETTERS))]


def load_questions(*, language: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    rows = read_set(
        data_dir=data_dir,
        file=f"mmlu_prox_{language}",
        dataset=f"li-lab/MMLU-ProX:{language}@test",
        fields=["question", *OPTIONS, "category", "answer"],
    )
    return documents([{"prompt": _prompt(row, language), "answer": row["answer"]} for row in rows])


def _prompt(row: dict, language: str) -> str:
    """The harness's words for the language: instruction, question, options, "let's think step by step"."""
    question, options, think, instruction, _, suffix = LANG_LIBS[language]
    subject = LANG_SUBJECTS[language][row["category"].replace(" ", "_")]
    texts = [row[option] for option in OPTIONS]
    listed = [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=True) if text is not None]
    told = instruction.format(subject=subject, ans_suffix=suffix.format("X"))
    return "\n".join([told, question, row["question"], options, *listed, think])


def score(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    (answers,) = results
    letters = [explicit_letter(answer, LETTERS) for answer in answers]
    return {
        "score": [float(letter == doc["answer"]) for letter in letters],
        "letter_found": [float(letter is not None) for letter in letters],
    }
