"""FigFont: which word does the ASCII art say?"""

from datasets import Dataset
from rapidfuzz.distance import JaroWinkler

from evaluation.tasks.answers import documents
from evaluation.tasks.sets import read_set
from nemo_probsft.data.prompts import figfont


def load_puzzles(*, file: str, dataset: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    rows = read_set(
        data_dir=data_dir,
        file=file,
        dataset=dataset,
        fields=["question", "answer"],
        hint="make it with nemo-probsft data prepare figfont",
    )
    return documents([{"prompt": figfont(row["question"]), "answer": row["answer"]} for row in rows])


def score(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    """score: the answer is the word, to the character. jaro_winkler: similarity in [0, 1], prefix weight 0.1."""
    (answers,) = results
    return {
        "score": [float(answer == doc["answer"]) for answer in answers],
        "jaro_winkler": [JaroWinkler.similarity(answer, doc["answer"]) for answer in answers],
    }
