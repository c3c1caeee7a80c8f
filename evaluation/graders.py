"""Is the final answer of a response mathematically the gold answer? Bounded in time and memory for any input.

Plain text and plain numbers are compared here. Everything else goes to math-verify's LaTeX parser in a process
of its own, which has a memory limit and is replaced if it takes too long. No input is ever executed as code.
"""

from dataclasses import dataclass
from functools import lru_cache

from evaluation.answer_text import (
    bracketed,
    clean,
    extract_answer,
    is_word,
    items,
    normalize,
    readings,
    reference_answer,
    without_label,
    without_name,
)
from evaluation.numerals import expanded, read_number, same_number
from evaluation.reasoning import without_reasoning
from evaluation.symbolic_worker import SymbolicWorker

_worker = SymbolicWorker()


@dataclass(frozen=True)
class Judgement:
    """timed_out: the comparison ran out of time, memory or depth; `correct` is then False, but not known to be."""

    correct: bool
    timed_out: bool = False


def math_correct(response: str, gold: str) -> bool:
    """Whether the final answer in `response` equals `gold` (an answer, or a text with a boxed one). See `judge`."""
    return judge(response, gold).correct


def judge(response: str, gold: str) -> Judgement:
    """As `math_correct`, and whether the judgement had to be given up.

    Cost: microseconds for plain answers; else about 10 ms, at most about 6 s, and the start of a new process.
    """
    return judge_answer(extract_answer(without_reasoning(response)), reference_answer(gold))


@lru_cache(maxsize=1 << 16)
def judge_answer(answer: str, gold: str) -> Judgement:
    """As `judge`, for two final answers, without what is said around them. Remembers its judgements."""
    judgements = []
    for reading in readings(answer):
        for gold_reading in readings(gold):
            judgements.append(_judge_reading(reading, gold_reading))
            if judgements[-1].correct:
                return judgements[-1]
    return Judgement(False, timed_out=any(judgement.timed_out for judgement in judgements))


def _judge_reading(answer: str, gold: str) -> Judgement:
    answer, gold = without_name(answer, gold), without_name(gold, answer)
    answer, gold = without_label(answer, gold), without_label(gold, answer)
    if normalize(answer) == normalize(gold) != "":
        return Judgement(True)
    if is_word(answer) and is_word(gold):
        return Judgement(False)  # as mathematics, words are products of letters: listen = silent
    number, gold_number = read_number(answer), read_number(gold)
    if number and gold_number:
        return Judgement(same_number(number, gold_number))
    if {bracketed(answer), bracketed(gold)} == {"(", "{"}:
        return Judgement(False)  # math-verify takes the pair (1, 2) for the set of 1 and 2
    listed, gold_listed = items(answer), items(gold)
    if len(gold_listed) == 1 and 1 < len(set(map(normalize, listed))) == len(listed):  # one thing in several forms
        return Judgement(all(judge_answer(item, gold).correct for item in listed[:5]))
    if listed and gold_listed and len(listed) != len(gold_listed):
        return Judgement(False)  # math-verify compares sets: {1, 1} = {1}
    answer, gold = clean(answer), clean(gold)
    latex, gold_latex = expanded(answer, gold), expanded(gold, answer)
    if latex is None or gold_latex is None:
        return Judgement(False)
    equal = _worker.equal(latex, gold_latex)
    return Judgement(bool(equal), timed_out=equal is None)
