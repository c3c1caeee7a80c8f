"""The program in an answer: what is run of it, by running it."""

import pytest

from evaluation.programs import program

PREAMBLE = (
    "from typing import List\n\n\ndef half(x):\n    return x / 2\n\n\n"
    'def total(numbers: List[int]) -> int:\n    """ Sum of the numbers. """\n'
)
RIGHT = "def total(numbers: List[int]) -> int:\n    return sum(numbers)\n"
BODY = "    return sum(numbers)\n"
TESTS = "assert total([1, 2]) == 3\nassert total([]) == 0\n"

WHOLE = {  # functions, with what stands around them
    "as the block was begun": RIGHT,
    "closed, with prose behind": f"{RIGHT}```\nIt adds all ``numbers``.",
    "closed on the last line": f"{RIGHT.rstrip()}```",
    "opened again": f"```python\n{RIGHT}```\nIt adds.",
    "opened again without a tag": f"```\n{RIGHT}```",
    "opened again, never closed": f"```Python3\n{RIGHT}",
    "prose, then a block": f"Here is the code:\n\n```python\n{RIGHT}```",
    "prose, then a block without a tag": f"Here is the code:\n\n```\n{RIGHT}```",
    "another language first": f"```bash\npip install numpy\n```\n\n```python\n{RIGHT}```",
    "output behind": f"{RIGHT}```\n\n```text\n3\n```",
    "tildes": f"~~~python\n{RIGHT}~~~",
    "an example that would fail behind": f"{RIGHT}```\nUse it so:\n```python\nprint(total(undefined))\n```",
    "pseudocode before": f"```\nadd up everything\n```\n```python\n{RIGHT}```",
    "a helper in a block before": "```python\nimport math\n\ndef add(x):\n    return math.floor(sum(x))\n```\nThen\n"
    "```python\ndef total(numbers):\n    return add(numbers)\n```",
    "a helper of the problem": "def total(numbers: List[int]):\n    return int(2 * half(sum(numbers)))\n",
    "a helper whose name begins alike": "def total_of(rest):\n    return sum(rest)\n\n\n"
    "def total(numbers):\n    return total_of(numbers)\n",
    "from __future__": f"from __future__ import annotations\n{RIGHT}",
    "from __future__ in brackets, late": f"import math\nfrom __future__ import (\n    annotations,\n)\n{RIGHT}",
    "all of it indented": "    def total(numbers):\n        return sum(numbers)\n",
    "no def": "total = lambda numbers: sum(numbers)\n",
    "other line ends": RIGHT.replace("\n", "\r\n"),
}
BODIES = {
    "body": BODY,
    "closed": f"{BODY}```\nDone.",
    "opened again": f"```python\n{BODY}```",
    "with a helper whose name begins alike": "    def total_of(rest):\n        return sum(rest)\n\n"
    "    return total_of(numbers)\n",
    "with a helper of the same name": "    def total(rest):\n        return sum(rest)\n    return total(numbers)\n",
}


def run(code: str) -> None:
    """A program of these tests, which is ours."""
    exec(compile(code + "\n\n" + TESTS, "program", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(
    "answer", [*WHOLE.values(), *BODIES.values()], ids=[*WHOLE, *(f"body: {name}" for name in BODIES)]
)
def test_an_answer_continues_or_replaces_the_problem(answer):
    run(program(answer, PREAMBLE, "total", TESTS))


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "a helper of the problem"])
def test_an_answer_without_a_problem_to_continue_defines_what_the_tests_call(name):
    run(program(WHOLE[name].replace(": List[int]", ""), "", "", TESTS))


def test_from_future_in_the_problem():
    run(program(RIGHT, "from __future__ import annotations\n" + PREAMBLE, "total", TESTS))
    run(program(BODY, '"""Sums."""\nfrom __future__ import annotations\n' + PREAMBLE, "total", TESTS))


@pytest.mark.parametrize(
    "answer",
    [
        "def total(numbers):\n    return 4\n",
        "def total_of(numbers):\n    return sum(numbers)\n",  # another function
        f"def total(numbers):\n    return 4\n```\nBetter:\n```python\n{RIGHT}```",  # the first whole one counts
        "",
        "```\n```",
    ],
)
def test_wrong_answers_stay_wrong(answer):
    with pytest.raises((AssertionError, TypeError)):
        run(program(answer, PREAMBLE, "total", TESTS))
