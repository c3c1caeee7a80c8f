"""What is equal as mathematics, kind by kind: the same value in many spellings, and its neighbours, which are not."""

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.graders import Judgement, judge, math_correct
from evaluation.numerals import plain_number, read_number

SUPPORT = Path(__file__).parents[1] / "support"
CASES = yaml.safe_load((SUPPORT / "math_equality.yaml").read_text(encoding="utf-8"))
GOLDS = [json.loads(line) for line in (SUPPORT / "math_golds.jsonl").read_text(encoding="utf-8").splitlines()]
ANY = settings(max_examples=100, deadline=None, database=None, derandomize=True)

SAME, DIFFERENT = (CASES["same"], CASES["different"])


@pytest.mark.parametrize("kind", SAME)
def test_the_same_value_in_many_spellings(kind):
    first, *others = SAME[kind]
    wrong = [
        (a, b)
        for other in others
        for a, b in ((first, other), (other, first))
        if not math_correct(f"\\boxed{{{a}}}", b)
    ]
    assert wrong == []


@pytest.mark.parametrize("kind", DIFFERENT)
def test_neighbours_are_different(kind):
    pairs = [(a, b) for pair in DIFFERENT[kind] for a, b in (pair, pair[::-1])]
    assert [(a, b) for a, b in pairs if math_correct(f"\\boxed{{{a}}}", b)] == []


def test_what_is_too_large_to_be_written_out_is_given_up_and_counted():
    assert judge(r"\boxed{10^{10^{10}}+1}", r"10^{10^{10}}") == Judgement(False, timed_out=True)
    assert judge(r"\boxed{10^{10^{10}}}", r"10^{10^{10}}") == Judgement(True)


def spellings(value: Fraction) -> list[str]:
    """Exact spellings of a fraction that is not 0, by arithmetic that the grader does not share."""
    top, bottom, sign = abs(value.numerator), value.denominator, "-" if value < 0 else ""
    whole, rest = divmod(top, bottom)
    spelled = [
        f"{sign}\\frac{{{top}}}{{{bottom}}}",
        f"\\frac{{{sign}{3 * top}}}{{{3 * bottom}}}",
        f"{sign}{top}/{bottom}",
        f"{sign}\\dfrac{{ {top} }}{{ {bottom} }}",
        f"{sign}\\sqrt{{\\frac{{{top**2}}}{{{bottom**2}}}}}",
        f"{value.numerator + bottom}/{bottom} - 1",
        f"{sign}{top} \\cdot {bottom}^{{-1}}",
        f"{sign}\\frac{{{top} \\cdot 20!}}{{{bottom} \\cdot 20!}}",
        f"x = {sign}\\frac{{{top}}}{{{bottom}}}",
        f"\\mathbf{{{sign}\\frac{{{top}}}{{{bottom}}}}}",
    ]
    if whole and rest:
        spelled += [f"{sign}{whole}\\frac{{{rest}}}{{{bottom}}}", f"{sign}{whole} {rest}/{bottom}"]
    if bottom == 1:
        digits = format(top, "b")
        spelled += [
            f"{sign}{top}",
            f"{sign}{top:,}",
            f"{sign}{top:,}".replace(",", "\\,"),
            f"{sign}{digits}_2",
            f"{sign}{top}.0",
        ]
    if 10**6 % bottom == 0:
        spelled.append(f"{sign}{top * 10**6 // bottom // 10**6}.{top * 10**6 // bottom % 10**6:06d}")
    if 999 % bottom == 0 and rest:
        spelled.append(f"{sign}{whole}.\\overline{{{rest * 999 // bottom:03d}}}")
    return spelled


@ANY
@given(st.data(), st.fractions(-2000, 2000, max_denominator=40).filter(bool))
def test_spellings_of_a_number_are_equal_and_those_of_another_are_not(data, value):
    """Perturbed in numerator, denominator, sign or by a factor, in any other spelling."""
    one, other = (data.draw(st.sampled_from(spellings(value))) for _ in range(2))
    assert math_correct(f"\\boxed{{{one}}}", other)
    step = Fraction(1, value.denominator)
    neighbours = [value + step, value - step, -value, value * 10, value / 2, value.numerator / (1 / step + 1)]
    wrong = data.draw(st.sampled_from([other for other in neighbours if other not in (0, value)]))
    assert not math_correct(f"\\boxed{{{data.draw(st.sampled_from(spellings(wrong)))}}}", other)


@ANY
@given(st.integers(2, 16), st.integers(0, 10**9))
def test_numerals_are_read_in_their_base(base, value):
    digits, rest = "", value
    while rest or not digits:
        rest, digit = divmod(rest, base)
        digits = "0123456789ABCDEF"[digit] + digits
    numeral = f"{digits}_{{{base}}}"
    if digits[0].isdigit():
        assert plain_number(numeral) == value
        assert math_correct(f"\\boxed{{{numeral}}}", str(value))
        assert math_correct(f"\\boxed{{{digits}}}", numeral) == (digits == str(value))


@ANY
@given(st.integers(1, 12), st.integers(1, 10**6), st.integers(0, 999))
def test_a_decimal_is_equal_to_what_it_rounds_or_cuts(places, top, bottom):
    """Within less than a unit in its last place, if that is within 1e-4 of it; never further."""
    value = Fraction(top, 1000 + bottom)
    scaled = value * 10**places
    for written, close in (
        (scaled // 1, True),
        (round(scaled), True),
        (scaled // 1 + 2, False),
        (scaled // 1 - 1, False),
    ):
        decimal = f"{int(written) // 10**places}.{int(written) % 10**places:0{places}d}"
        difference = abs(Fraction(decimal) - value)
        close = difference == 0 or (
            close and difference <= value / 10_000 and not (difference and value.denominator == 1)
        )
        assert math_correct(f"\\boxed{{{decimal}}}", f"{value.numerator}/{value.denominator}") == close


def test_plain_answers_say_what_they_are():
    no_number = ("x", "1/0", "", ".", "-", "1 2", "5 x", "5x", "5m", r"5 \sin", r"5\pi", "5 or 6")
    assert [text for text in no_number if read_number(text)] == []
    assert read_number("12.50").step == Fraction(1, 100)
    assert read_number("12.5e3").step == 100
    assert read_number("25/2").step is None
    assert read_number("3 km/h").unit == (Fraction(1000, 3600), (("length", 1), ("time", -1)))


def test_every_gold_answer_of_the_five_sets_is_equal_to_itself():
    """MATH-500, Minerva, OlympiadBench, AIME24 and AMC23: 996 different answers, as models write them."""
    wrong = []
    for gold in GOLDS:
        bare = gold.strip("$ ")
        single = bare.replace("$", "") if "\\$" not in bare else bare
        for response in (
            f"So $\\boxed{{{bare}}}$.",
            f"\\boxed{{ {bare.replace(chr(92) + 'frac', chr(92) + 'dfrac')} }}",
            f"\\boxed{{\\displaystyle {bare}}}",
            f"\\boxed{{\\mathbf{{{bare}}}}}",
            f"First, 1.\n**Final Answer:** ${single}$.",
            f"First, 1.\nThe final answer is:\n\n$$\n{single}\n$$",
            f"First, 1.\nThe answer is \\[{single}\\]",
        ):
            if not math_correct(response, gold):
                wrong.append((response, gold))
    assert wrong == []


def test_gold_answers_of_different_items_are_different():
    """Each twentieth against its neighbour in the alphabet, which looks alike."""
    pairs = [(a, b) for a, b in list(pairwise(sorted(GOLDS)))[::20] if _number(a) is None or _number(a) != _number(b)]
    assert len(pairs) > 40
    assert [(a, b) for a, b in pairs if math_correct(f"\\boxed{{{a}}}", b)] == []


def _number(text: str) -> Fraction | None:
    try:
        return Fraction(text)
    except ValueError:
        return None
