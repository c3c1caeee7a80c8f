"""Is the final answer of a response mathematically the gold answer? Bounded in time and memory for any input.

Plain text and plain numbers are compared here. Everything else goes to math-verify's LaTeX parser in a process
of its own, which has a memory limit and is replaced if it takes too long. No input is ever executed as code.
"""

from dataclasses import dataclass
from functools import lru_cache

from evaluation.grading.answer_text import extract_answer, is_word, normalize, plain_values, same_number, without_name
from evaluation.grading.symbolic_worker import SymbolicWorker
from evaluation.reasoning import without_reasoning

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
    return judge_answer(extract_answer(without_reasoning(response)), extract_answer(gold))


@lru_cache(maxsize=1 << 16)
def judge_answer(answer: str, gold: str) -> Judgement:
    """As `judge`, for two final answers that `extract_answer` has found. Remembers its judgements."""
    if not answer or not gold:
        return Judgement(False)
    answer, gold = without_name(answer, gold), without_name(gold, answer)
    if normalize(answer) == normalize(gold) != "":
        return Judgement(True)
    if is_word(answer) and is_word(gold):
        return Judgement(False)  # as mathematics, words are products of letters: listen = silent
    values, gold_values = plain_values(answer), plain_values(gold)
    if len(values) == len(gold_values) == 2:  # two percentages
        return Judgement(same_number(values[0], gold_values[0]))
    if values and gold_values:
        return Judgement(any(same_number(value, other) for value in values for other in gold_values))
    equal = _worker.equal(answer, gold)
    return Judgement(bool(equal), timed_out=equal is None)
