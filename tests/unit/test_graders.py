"""Judgements: what is equal and what is not; bounded in time and memory for any input, fast for plain answers."""

import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import graders
from evaluation.answer_text import extract_answer
from evaluation.graders import Judgement, judge, math_correct
from evaluation.numerals import plain_number
from evaluation.symbolic_worker import START_SECONDS, WALL_SECONDS, SymbolicWorker

ROOT = Path(__file__).parents[2]

EQUAL = [
    ("0.5", r"\frac12"),
    (r"\dfrac{1}{2}", "1/2"),
    ("1,234,567", "1234567"),
    (r"11{,}111", "11,111"),
    (r"\$32,348", "32348"),
    (r"5 \text{ cm}", "5"),
    (r"7.25 \times 10^{-11} \mathrm{~m}", "7.25e-11"),
    ("0.333333", r"\frac13"),
    (r"\text{Even}", "even"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\tfrac{\pi}{2})"),
    ("84, 69", "$69$,$84$"),
    (r"x^2+2x+1", r"(x+1)^2"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("y = 3x + 2", "3x+2"),
    (r"x = 10,\!080", "10080"),
    (r"n=\text{Evelyn}", "Evelyn"),
    (r"\pm 2", "-2,2"),
    (r"e^{-2}", r"\frac{1}{e^2}"),
    (r"45^\circ", "45"),
    (r"10\%", "0.1"),
    (r"50\%", "50"),
    ("0.125", r"12.5\%"),
    (r"\textbf{(073)}", "73"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
]
DIFFERENT = [
    (r"50\%", r"0.5\%"),
    ("12", "13"),
    ("10000", "10001"),  # integers are exact, whatever the relative tolerance
    ("0", "7.25e-11"),  # small constants are not zero
    (r"6.6 \times 10^{-34}", r"6.6 \times 10^{-33}"),
    ("0.33", r"\frac13"),
    ("3.14", r"\pi"),
    ("(2,1)", "(1,2)"),
    (r"(-\infty, 3)", r"(-\infty, 3]"),
    ("x+1", "x-1"),
    ("silent", "listen"),
    (r"\text{odd}", r"\text{even}"),
    (r"\sqrt{8}", r"2\sqrt{3}"),
    ("1,2", "1,2,3"),
    ("x = 3", "x = 4"),
    ("x = 3", "4"),
    ("y = x + 1", "y = x + 2"),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal_answers(answer, gold):
    assert judge(f"Hence the result is $\\boxed{{{answer}}}$.", gold) == Judgement(True)
    assert judge(f"\\boxed{{{gold}}}", answer) == Judgement(True)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT)
def test_different_answers(answer, gold):
    assert judge(f"Hence the result is $\\boxed{{{answer}}}$.", gold) == Judgement(False)
    assert judge(f"\\boxed{{{gold}}}", answer) == Judgement(False)


@settings(max_examples=300, deadline=None)
@given(a=st.integers(-(10**12), 10**12), b=st.integers(-(10**12), 10**12))
def test_integers_are_compared_exactly(a, b):
    assert math_correct(f"\\boxed{{{a}}}", str(b)) == (a == b)
    assert math_correct(f"The answer is {a:,}.", f"{a}")
    assert math_correct(f"thus it is\n{a}", str(a))


@settings(max_examples=300, deadline=None)
@given(a=st.fractions(-1000, 1000, max_denominator=999), shift=st.floats(3e-4, 1.0))
def test_decimals_are_compared_to_the_relative_tolerance(a, shift):
    decimal = format(float(a), ".9f")
    assert math_correct(f"\\boxed{{{decimal}}}", f"\\frac{{{a.numerator}}}{{{a.denominator}}}") == (
        abs(Fraction(decimal) - a) <= Fraction(1, 10_000) * max(abs(Fraction(decimal)), abs(a))
    )
    if abs(a) >= Fraction(1, 100) and not float(a * (1 + Fraction(shift))).is_integer():
        assert not math_correct(f"\\boxed{{{format(float(a) * (1 + shift), '.9f')}}}", decimal)


@settings(max_examples=200, deadline=None)
@given(mantissa=st.decimals("0.01", "9.99", places=2), exponent=st.integers(-40, 40))
def test_powers_of_ten_keep_their_scale(mantissa, exponent):
    gold = f"{mantissa}e{exponent}"
    assert math_correct(f"\\boxed{{{mantissa} \\times 10^{{{exponent}}}}}", gold)
    assert math_correct(f"\\boxed{{{mantissa}\\cdot10^{{{exponent}}} \\text{{ m/s}}}}", gold)
    assert not math_correct(f"\\boxed{{{mantissa} \\times 10^{{{exponent + 1}}}}}", gold)
    assert plain_number(gold) == Fraction(str(mantissa)) * Fraction(10) ** exponent


HOSTILE = [
    ("9^9^9", "1"),
    (r"9^{9^{9^{9}}}", "3"),
    (r"\boxed{(x+1)^{300}(x-2)^{200}}", "x^{500}+1"),
    ("{" * 100_000, "1"),
    (r"\boxed{" + "{" * 100_000, "1"),
    (r"\boxed{" * 15_000 + "}" * 15_000, "1"),
    (r"\frac{1}{" * 90 + "2" + "}" * 90, "1"),
    ("(" * 400 + "1" + ")" * 400, "2"),
    ("answer is " * 50_000, "1"),
    ("-" * 90_000 + "x", "1"),
    ("9," * 50_000, "1"),
    ("\u202e\x00\ud800\U0001f600\u0661\u0662", "12"),
    ("", "1"),
    ("1", ""),
]


def test_hostile_answers_are_bounded_and_wrong():
    """Every judgement ends, also the next one after a process had to be replaced; what was given up is counted."""
    given_up = 0
    for response, gold in HOSTILE:
        start = time.monotonic()
        judgement = judge(response, gold)
        assert time.monotonic() - start < WALL_SECONDS + START_SECONDS
        assert not judgement.correct
        given_up += judgement.timed_out
    assert 2 <= given_up < len(HOSTILE)
    assert judge("1", HOSTILE[0][0]).correct is False
    assert judge(r"\boxed{x^2+2x+1+0}", "(x+1)^2") == Judgement(True)


def test_code_in_an_answer_is_not_executed(tmp_path):
    target = tmp_path / "executed"
    for code in (
        f"__import__('pathlib').Path('{target}').touch()",
        f"().__class__.__base__.__subclasses__() or open('{target}','w')",
        f"\\text{{open('{target}','w')}}",
        f"1+1+open('{target}','w').fileno()",
    ):
        for response, gold in ((f"\\boxed{{{code}}}", "2"), (code, "2"), ("\\boxed{2}", code)):
            assert not math_correct(response, gold)
    assert not target.exists()


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60) | st.text(alphabet="{}\\$^_()[],.0123456789+-*/=x", max_size=60))
def test_any_text_gets_a_judgement(text):
    for response in (text, f"\\boxed{{{text}}}"):
        assert isinstance(judge(response, "1"), Judgement)
    if extract_answer(text):
        assert extract_answer(text) in text


def test_a_judgement_that_takes_too_long_is_reported_as_such(monkeypatch):
    worker = SymbolicWorker()
    monkeypatch.setattr(graders, "_worker", worker)
    judgement = judge(r"\boxed{\prod_{k=1}^{10^{8}} k^k + 1}", r"\frac{x}{7}")
    assert judgement == Judgement(False, timed_out=True)
    assert judge(r"\boxed{\frac{2x}{14}}", r"\frac{x}{7}") == Judgement(True)
    worker.close()


def test_memory_of_the_process_is_bounded():
    """2 GiB of address space: an allocation beyond it fails inside the process instead of taking the machine down."""
    code = (
        "import resource, evaluation.symbolic_worker as w\n"
        "resource.setrlimit(resource.RLIMIT_AS, (w.MEMORY_BYTES, w.MEMORY_BYTES))\n"
        "try:\n    bytearray(w.MEMORY_BYTES)\nexcept MemoryError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "refused"
    worker = SymbolicWorker()
    assert worker.equal("x+x", "2x") is True
    limits = Path(f"/proc/{worker._process.pid}/limits").read_text()
    assert str(2 << 30) in next(line for line in limits.splitlines() if line.startswith("Max address space"))
    worker.close()


def test_plain_answers_need_no_other_process(monkeypatch):
    """They are judged at many thousands a second (AGREEMENT.md): nothing but text and exact fractions is compared."""
    worker = SymbolicWorker()
    monkeypatch.setattr(graders, "_worker", worker)
    responses = [f"We see that {i} + 1 = {i + 1}, so the answer is $\\boxed{{{i + 1}}}$." for i in range(3000)]
    assert sum(math_correct(response, str(i + 1 + (i % 3 == 0))) for i, response in enumerate(responses)) == 2000
    assert worker._process is None


def test_worker_answers_in_one_line_of_json():
    """What crosses the pipe is data: quotes, newlines and surrogates of an answer stay inside their line."""
    worker = SymbolicWorker()
    for text in ('"]\n["x', "\ud800", "\u2028", "'" * 3, "\\" * 7):
        assert worker.equal(text, "1") is False
    assert worker.equal(r"\frac{4}{2}", "2") is True
    worker.close()
