"""Letters of multiple-choice answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.choices import explicit_letter, medical_letter

OPTIONS = {"A": "aspirin", "B": "beta blocker", "C": "vitamin C", "D": "none of these"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("It is not A. The answer is B.", "B"),
        ("The answer is A, no, the answer is D", "D"),
        ("So \\boxed{C}", "C"),
        ("**B**", "B"),
        ("(A), no: (C)", "C"),
        ("A patient has scurvy, hence (C)", "C"),
        ("A patient needs B", "B"),
        ("## Final Response\n\nD", "D"),
        ("A or B?\n## Final Response\n\nThe right one: A", "A"),
    ],
)
def test_medical_letters(text, letter):
    assert medical_letter(text, OPTIONS) == (letter, True)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("first aspirin, then a beta blocker", "B"),  # the option named last
        ("beta blockers, later aspirin", "A"),
    ],
)
def test_medical_options_named_in_words(text, letter):
    assert medical_letter(text, OPTIONS) == (letter, False)


def test_the_m1_protocol_always_settles_on_a_letter():
    assert medical_letter("asprin", OPTIONS) == ("A", False)  # misspelt: the most similar option
    assert medical_letter("", OPTIONS)[0] in OPTIONS


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("(B) because A and C are wrong", "B"),
        ("Jibu ni (D).", "D"),
        ("A B C", "C"),
        ("answer: b", "B"),
        ("A. first B: second", "B"),
        ("no letter of these: XYZ", None),
        ("", None),
        ("ABBA", None),
        ("उत्तर आहे (E)", "E"),
    ],
)
def test_explicit_letters(text, letter):
    assert explicit_letter(text, "ABCDEFGHIJ") == letter


def test_letters_beyond_the_options_do_not_count():
    assert explicit_letter("(F)", "ABCD") is None


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80))
def test_any_text_has_a_verdict(text):
    assert medical_letter(text, OPTIONS)[0] in "ABCDEFGHIJKLMN"
    assert explicit_letter(text, "ABCD") in (*"ABCD", None)


@pytest.mark.parametrize("text", ["A " * 50_000, "(" * 100_000, " " * 100_000, "A" + " " * 100_000, "x" * 100_000])
def test_long_answers_get_a_verdict(text):
    """Of their last 20,000 characters, in linear patterns: a quadratic one would not end here."""
    assert medical_letter(text, OPTIONS)[0] in OPTIONS
    assert explicit_letter(text, "ABCDEFGHIJ") in (None, "A")
