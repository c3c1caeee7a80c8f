"""Reasoning is no answer: what graders read of a response."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.choices import explicit_letter, medical_letter
from evaluation.graders import math_correct
from evaluation.reasoning import opens_reasoning, without_reasoning
from evaluation.tasks import answers, coding, mathematics, puzzles


@pytest.mark.parametrize(
    ("response", "read"),
    [
        ("<think>4? no</think>5", "5"),
        ("<think>\n4?\n</think>\n\n5\n", "5\n"),
        ("4? no</think>\n5", "5"),  # the prompt opened it
        ("<think>4?", ""),
        ("The answer is 4. <think>Or", ""),
        ("<think>4?</think>5<think>6?</think>", "5"),
        ("<think>4? <think>6?</think> 7?</think>5", "5"),
        ("<Thinking>4?</Thinking> 5", "5"),
        ("<think></think>\n\n    return 5\n", "    return 5\n"),  # the indentation of code stays
        (" 5 \n", " 5 \n"),
        ("a < b and think > c", "a < b and think > c"),
    ],
)
def test_what_is_outside_of_reasoning_is_read(response, read):
    assert without_reasoning(response) == read
    assert without_reasoning(read) == read


@given(st.lists(st.sampled_from(["<think>", "</think>", "x", "\n", " "])).map("".join))
def test_no_tag_is_left(response):
    read = without_reasoning(response)
    assert "think>" not in read
    assert len(read) <= len(response)


def test_a_template_that_opens_reasoning_is_known():
    assert opens_reasoning("<|im_start|>assistant\n<think>\n")
    assert not opens_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n")  # thinking that is switched off
    assert not opens_reasoning("Say what <think> means.")
    assert not opens_reasoning("1+1?")


BEFORE, UNCLOSED = "<think>\nFirst \\boxed{4}, the answer is (A), HI.\n</think>\n\n", "<think>\n"


@pytest.mark.parametrize(("answer", "right"), [("{}", True), (BEFORE + "{}", True), (UNCLOSED + "{}", False)])
def test_no_grader_reads_reasoning(answer, right):
    scored = {
        "letter": explicit_letter(answer.replace("{}", "The answer is (C)."), "ABCD") == "C",
        "medicine": medical_letter(answer.replace("{}", "The answer is C."), {"A": "x", "B": "y", "C": "z"})
        == ("C", True),
        "mathematics": math_correct(answer.replace("{}", "\\boxed{5}"), "5"),
        "figfont": puzzles.score({"answer": "HO"}, [[answer.replace("{}", "HO")]])["score"] == [1],
        "exact match": answers.exact_match({"answer": "7"}, [[answer.replace("{}", "7")]])["score"] == [1],
    }
    marked = mathematics.score({"answer": "5"}, [[answer.replace("{}", "\\boxed{5}")]])
    scored |= {"majority": marked["majority"] == 1, "mathematics task": marked["score"] == [1]}
    assert scored == dict.fromkeys(scored, right)
    doc = {"preamble": "", "entry_point": "", "answer": "assert f() == 1"}
    written = coding.program(doc, answer.replace("{}", "def f():\n    return 1\n"))
    assert ("def f" in written) is right
    assert "boxed" not in written
