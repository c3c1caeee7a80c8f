"""Where the final answer of a response is, however it is decorated: boxes, statements, stars, dollars, fonts."""

import pytest

from evaluation.answer_text import MAX_ANSWER_CHARS, clean, extract_answer, normalize, reference_answer
from evaluation.graders import math_correct

BOXES = {  # each says 42
    "as it should be": r"$\boxed{42}$",
    "spaces": r"\boxed { 42 }",
    "lines": "\\boxed\n{\n42\n}",
    "no braces": r"it is $\boxed 42$.",
    "no braces, no space": r"it is $\boxed42$.",
    "no braces in text": r"so \boxed 42 and nothing else",
    "fbox": r"\fbox{42}",
    "framebox": r"\framebox[3cm][c]{42}",
    "a box in a box": r"\boxed{\boxed{42}}",
    "dollars in it": r"\fbox{$42$}",
    "stars in it": r"\boxed{**42**}",
    "a sentence in it": r"\boxed{\text{The answer is } 42}",
    "a name in it": r"\boxed{x = 42}",
    "period": r"\boxed{42.}",
    "twice": r"Thus $\boxed{42}$. The final answer is $\boxed{42}$.",
    "side by side": r"\boxed{42}\boxed{42}",
    "two on paragraphs of their own": "\\boxed{41}\n\nor rather, as I forgot one:\n\n\\boxed{42}",
    "an empty one after it": "\\boxed{42}\n\nThe answer is put within \\boxed{} as asked.",
    "an empty one before a statement": r"I must answer within \boxed{}. Here 6 * 7 = 42, so the answer is 42.",
    "a placeholder": r"Write \boxed{\text{answer}}. The answer is 42.",
    "dots": r"Write \boxed{...}. The answer is 42.",
    "cut": r"\boxed{42} and then \boxed{\frac{1}{",
    "the choice's letter": r"\boxed{\textbf{(C) } 42}",
}
FONTS = (
    r"\bf 42",
    r"{\bf 42}",
    r"\bf{42}",
    r"\mathbf{42}",
    r"\textbf{42}",
    r"\text{42}",
    r"\textbf{\text{42}}",
    r"\mathrm{42}",
    r"\boldsymbol{42}",
    r"\emph{42}",
    r"\underline{42}",
    r"\displaystyle 42",
    r"\large 42",
    r"\color{red}42",
    r"\textcolor{blue}{42}",
    r"\approx 42",
    "\u2248 42",
    r"\therefore 42",
    "= 42",
    r"\left(42\right)",
    r"\;42\,",
    "~42~",
    "{42}",
    "\uff14\uff12",
)
STATEMENTS = (
    "The answer is 42.",
    "The answer is **42**.",
    "The answer is: **$42$**",
    "**Answer:** 42",
    "**Answer**: $42$",
    "**Answer: 42**",
    "__Answer:__ 42",
    "**Final Answer:** $42$",
    "**Final Answer**\n\n42",
    "### Answer\n42",
    "#### 42",
    "ANSWER: 42",
    "The answer is $$42$$.",
    "The answer is:\n\n$$\n42\n$$",
    "The final answer is:\n\n\\[\nx = 42\n\\]",
    "The answer is \\( 42 \\).",
    "The answer is $ 42 $",
    "The answer is $42$ (see above).",
    "The answer is 42 (42 is even).",
    "The answer is 42, which is even.",
    "The answer is 42 because 6 * 7 = 42.",
    "The answer is 42 apples.",
    "The answer is $42.",
    "The answer to the problem is therefore $42$",
    "The correct answer is: (C) 42",
    "The answer is:\n- 42",
    "The answer is:\n```\n42\n```",
    "The answer is 41; no, the answer is 42",
    "The answer is 42.\nThe answer is given above.",
    "\u7b54\u6848\u662f $42$\u3002",
    "**\u7b54\u6848**\uff1a42",
)
LISTED = (
    r"\boxed{3}, \boxed{5}",
    r"$x = \boxed{3}$ and $x = \boxed{5}$",
    r"\boxed{3} or \boxed{5}",
    r"\boxed{3}\quad\text{and}\quad\boxed{5}",
    r"\boxed{3 \text{ or } 5}",
    "So\nthe answers are $3$ and $5$.",
    "So\nthe answers are 3 and 5.",
)


@pytest.mark.parametrize("response", BOXES.values(), ids=BOXES)
def test_a_box_is_read_however_it_is_drawn(response):
    assert math_correct(response, "42")
    assert not math_correct(response, "43")
    assert not math_correct(response, "4")


@pytest.mark.parametrize("answer", FONTS)
def test_fonts_and_sizes_say_nothing(answer):
    assert math_correct(f"$\\boxed{{{answer}}}$", "42")
    assert normalize(answer) == "42" or normalize(answer) == "(42)"
    assert not math_correct(f"$\\boxed{{{answer}}}$", "2")


def test_fonts_around_what_is_no_number():
    for answer in (r"\mathbf{\frac{\sqrt{2}}{2}}", r"\displaystyle{\frac{1}{\sqrt 2}}", r"\bf \frac{\sqrt2}{2}"):
        assert math_correct(f"\\boxed{{{answer}}}", r"\frac{\sqrt{2}}{2}")
    assert math_correct(r"\boxed{\mathbf{90^{\circ}}}", "90")


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_statement_is_read_however_it_is_decorated(statement):
    """Also where numbers stand before it, on lines of their own."""
    for response in (statement, f"1 + 1 = 2.\nSo we go on.\n{statement}"):
        assert math_correct(response, "42")
        assert not math_correct(response, "2")


@pytest.mark.parametrize("response", LISTED)
def test_several_answers_are_all_read(response):
    assert math_correct(response, "3, 5")
    assert not math_correct(response, "5")
    assert not math_correct(response, "3, 6")


def test_both_sides_of_an_approximation_are_read():
    for gold in (r"\sqrt{2}", "1.414"):
        assert math_correct(r"\boxed{\sqrt{2} \approx 1.414}", gold)
    assert not math_correct(r"\boxed{\sqrt{2} \approx 1.414}", "2")


def test_one_answer_in_two_forms():
    response = r"\boxed{15\frac{39}{40}} or \boxed{\frac{639}{40}}"
    assert math_correct(response, r"\frac{639}{40}")
    assert not math_correct(r"\boxed{15\frac{39}{40}} or \boxed{\frac{640}{40}}", r"\frac{639}{40}")


def test_reasoning_is_not_read():
    assert math_correct("<think>\\boxed{3}</think>\nThe answer is 4.", "4")
    assert not math_correct("<think>It is \\boxed{3}", "3")


def test_the_answer_is_the_last_boxed_then_the_last_statement_then_the_last_number():
    for response, answer in (
        (r"First \boxed{1}, no, \boxed{2}.", "2"),
        (r"\boxed{\frac{a}{\{b\}}}", r"\frac{a}{\{b\}}"),
        ("The final answer is: 12 apples.\nI hope so.", "12 apples"),
        ("the answer is $69$,$84$.", "$69$,$84$"),
        ("a\nb 1,234 c 56.5\nend", "56.5"),
        ("x^2 + 1", "x^2 + 1"),
        ("nothing\nhere", ""),
        (r"\boxed{}", r"\boxed{}"),
        ("\\boxed{" + "1+" * MAX_ANSWER_CHARS + "1}\nso", "1"),
    ):
        assert extract_answer(response) == answer


def test_a_gold_answer_is_itself_or_its_box():
    assert reference_answer(r"\begin{pmatrix} 1 \\" "\n" r"2 \end{pmatrix}").endswith(r"2 \end{pmatrix}")
    assert reference_answer("So it is $\\boxed{7}$, as 3 + 4.") == "7"
    assert reference_answer("3 + 4 = 7\n#### 7") == "7"


def test_letters_of_choices():
    for answer in ("C", "(C)", r"\text{(C)}", r"\textbf{(C)}\ 42", "C. 42"):
        assert math_correct(f"\\boxed{{{answer}}}", r"\text{(C)}")
        assert not math_correct(f"\\boxed{{{answer}}}", r"\text{(B)}")
    assert math_correct(r"\boxed{\textbf{(C)}\ 42}", "42")
    assert not math_correct(r"\boxed{\textbf{(C)}\ 42}", "43")


def test_a_space_between_digits_stays():
    assert clean(r"2\, 1/4") == "2 1/4"
    assert normalize("2 1/4") != normalize("21/4")
    assert normalize(r"x + \; 1") == normalize("x+1")
