"""FigFont: which word does the ASCII art say?"""

from datasets import Dataset
from rapidfuzz.distance import JaroWinkler

from evaluation.reasoning import without_reasoning
from evaluation.tasks.answers import documents
from evaluation.tasks.fields import text_of
from evaluation.tasks.sets import read_set
from nemo_probsft.data.prompts import figfont


def load_puzzles(*, file: str, dataset: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    docs = read_set(
        data_dir=data_dir,
        file=file,
        dataset=dataset,
        fields=["question", "answer"],
        document=lambda row: {"prompt": figfont(text_of(row, "question")), "answer": text_of(row, "answer")},
        hint="make it with nemo-probsft data prepare figfont",
    )
    return documents(docs)


def score(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    """score: the answer is the word, to the character. jaro_winkler: similarity in [0, 1], prefix weight 0.1."""
    answers = [without_reasoning(answer) for answer in results[0]]
    return {
        "score": [float(answer == doc["answer"]) for answer in answers],
        "jaro_winkler": [JaroWinkler.similarity(answer, doc["answer"]) for answer in answers],
    }
