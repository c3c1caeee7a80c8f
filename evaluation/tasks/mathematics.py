"""The five mathematics sets: their layouts, and scores by math-verify."""

from collections import Counter

from datasets import Dataset

from evaluation.answer_text import extract_answer, normalize, reference_answer
from evaluation.graders import judge
from evaluation.numerals import plain_number
from evaluation.reasoning import without_reasoning
from evaluation.tasks.answers import documents
from evaluation.tasks.fields import answer_of, shown, text_of
from evaluation.tasks.sets import read_set
from nemo_probsft.data.prompts import boxed


def load_problems(
    *, file: str, dataset: str, problem: str, answer: str, data_dir: str | None = None, **_metadata
) -> dict[str, Dataset]:
    """Documents from the fields `problem` and `answer` of the set."""
    docs = read_set(
        data_dir=data_dir,
        file=file,
        dataset=dataset,
        fields=[problem, answer],
        document=lambda row: {"prompt": boxed(text_of(row, problem)), "answer": gold_answer(row[answer], answer)},
    )
    return documents(docs)


def gold_answer(value: object, field: str = "answer") -> str:
    """The gold answer as LaTeX: of a list of one its item, of a solution the boxed part; a whole float without ".0".

    Raises: ValueError for a value of the field `field` that holds no one answer.
    """
    text = answer_of(value, field)
    gold = reference_answer(text)
    if not gold or "\n" in gold or "\\boxed" in gold:
        raise ValueError(f"{field} is {shown(text)}: must be one answer, or a solution with its answer in \\boxed{{}}")
    return gold


def score(doc: dict, results: list[list[str]]) -> dict:
    """score and timed_out of each answer, and the score of the most frequent one (maj@n)."""
    answers = [without_reasoning(answer) for answer in results[0]]
    judgements = [judge(answer, doc["answer"]) for answer in answers]
    scores = [float(judgement.correct) for judgement in judgements]
    return {
        "score": scores,
        "timed_out": [float(judgement.timed_out) for judgement in judgements],
        "majority": majority_score(answers, scores),
    }


def majority_score(answers: list[str], scores: list[float]) -> float:
    """Score of the most frequent final answer, the earliest on a tie.

    Answers vote by value where they are plain numbers, else by normalized text; a response without one does not vote.
    """
    finals = [extract_answer(answer) for answer in answers]
    votes = [plain_number(final) if plain_number(final) is not None else normalize(final) for final in finals]
    counts = Counter(vote for vote in votes if vote != "")
    if not counts:
        return 0.0
    winner = counts.most_common(1)[0][0]
    return scores[votes.index(winner)]
