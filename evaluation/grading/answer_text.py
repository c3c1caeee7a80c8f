"""Finding the final answer in a response; comparing answers that are plain text or plain numbers. Linear time."""

import re
from fractions import Fraction
from functools import lru_cache

MAX_ANSWER_CHARS = 1000  # a longer "answer" is not one; the longest gold of the five math sets has 242
RELATIVE_TOLERANCE = Fraction(1, 10_000)  # between numbers of which one is not an integer; that of the paper's grader

_ANSWER_IS = re.compile(r"(?:final answer|answer)\s*(?:is|:|=)\s*:?", re.IGNORECASE)
_NUMBER_IN_TEXT = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d{1,40})(?:\.\d{1,40})?")
_WRAPPED_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|mathbf|mathit|operatorname|rm)\s*\{([^{}]*)\}")
_WRAPPED_NUMBER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([-+().,\d]*)\}")
_NAMED = re.compile(r"\s*[^\s=\\]{1,2}\s*=([^=]+)", re.DOTALL)
_SPACING = re.compile(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\[!,;: ]|\\q?quad(?![a-zA-Z])|~|\s")
_UNIT = re.compile(r"\\(?:text|mathrm|mbox|rm)\{[^{}]*\}(?:\^\{?-?\d\}?)?$")
_INTEGER = r"(?:\d{1,3}(?:(?:,|\{,\})\d{3})+|\d{1,100})"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]*)(?:"
    rf"\\frac\{{(?P<top>[+-]?\d{{1,100}})\}}\{{(?P<bottom>[+-]?\d{{1,100}})\}}"
    rf"|\\frac(?P<digit_top>\d)(?P<digit_bottom>\d)"
    rf"|(?P<left>\d{{1,100}})/(?P<right>\d{{1,100}})"
    rf"|(?P<whole>{_INTEGER})?(?P<decimals>\.\d{{1,100}})?"
    rf"(?:(?:\\times|\\cdot|\*)?(?P<power>10\^(?:\{{(?P<braced>[+-]?\d{{1,3}})\}}|(?P<bare>\d)))|[eE](?P<exponent>[+-]?\d{{1,3}}))?"
    rf")"
)


def extract_answer(response: str) -> str:
    """The last balanced \\boxed{...}; else the rest of the line after the last "answer is"; else a one-line response
    itself; else the last number. Empty when there is none, or when it is longer than MAX_ANSWER_CHARS.
    """
    boxed = _last_boxed(response)
    if boxed is not None:
        return _bounded(boxed)
    statements = list(_ANSWER_IS.finditer(response[-20_000:]))
    if statements:
        tail = response[-20_000:][statements[-1].end() :].strip()
        return _bounded(tail.split("\n", 1)[0].strip().rstrip("."))
    if len(response) <= MAX_ANSWER_CHARS and "\n" not in response.strip():
        return response.strip()
    numbers = _NUMBER_IN_TEXT.findall(response[-20_000:])
    return numbers[-1] if numbers else ""


def _bounded(answer: str) -> str:
    return answer.strip() if len(answer) <= MAX_ANSWER_CHARS else ""


def _last_boxed(text: str) -> str | None:
    """Content of the last \\boxed or \\fbox whose braces balance within MAX_ANSWER_CHARS; None when there is none."""
    end = len(text)
    for _ in range(20):  # an unbalanced last one (cut at the token limit) falls back to those before it
        start = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
        if start < 0:
            return None
        content = _braced(text, start + (6 if text.startswith("\\boxed", start) else 5))
        if content is not None:
            return content
        end = start
    return None


def _braced(text: str, start: int) -> str | None:
    while start < len(text) and text[start] == " ":
        start += 1
    if start >= len(text) or text[start] != "{":
        return None
    depth = 0
    for position in range(start, min(len(text), start + MAX_ANSWER_CHARS + 2)):
        if text[position] == "\\":
            continue
        if text[position] == "{" and text[position - 1] != "\\":
            depth += 1
        elif text[position] == "}" and text[position - 1] != "\\":
            depth -= 1
            if depth == 0:
                return text[start + 1 : position]
    return None


@lru_cache(maxsize=1 << 16)
def normalize(answer: str) -> str:
    """LaTeX without what leaves its meaning as it is: delimiters, spacing, text wrappers, sizes, a last period."""
    text = answer.strip().strip("$").replace("\\(", "").replace("\\)", "").replace("\\[", "").replace("\\]", "")
    text = _WRAPPED_TEXT.sub(r"\1", text)
    text = _SPACING.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.replace("\\%", "%").replace("\\$", "").replace("$", "").replace("^{\\circ}", "").replace("^\\circ", "")
    text = text.rstrip(".")
    return text.casefold() if text.isalpha() else text


def without_name(answer: str, other: str) -> str:
    """The right side of "x = ...", where `other` is no equation; the name has at most two characters, in the math."""
    match = _NAMED.fullmatch(answer.strip().strip("$"))
    return match[1] if match and "=" not in other else answer


def is_word(answer: str) -> bool:
    """Letters only, and meant as text: four or more, or in a LaTeX text wrapper."""
    text = normalize(answer)
    return text.isalpha() and (len(text) >= 4 or _WRAPPED_TEXT.search(answer) is not None)


@lru_cache(maxsize=1 << 16)
def plain_number(answer: str) -> Fraction | None:
    """Exact value of an integer, decimal, simple fraction or power-of-ten notation, a \\text unit aside; else None."""
    text = answer.strip().strip("$").replace("\\$", "").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _UNIT.sub("", _WRAPPED_NUMBER.sub(r"\1", _SPACING.sub("", text).rstrip(".")))
    match = _NUMBER.fullmatch(text.removeprefix("(").removesuffix(")") if text[:1] + text[-1:] == "()" else text)
    if match is None:
        return None
    value = _magnitude(match)
    return None if value is None else value * (-1) ** match["sign"].count("-")


def plain_values(answer: str) -> tuple[Fraction, ...]:
    """What a plain number may mean: itself, and for a percentage both x and x/100, as math-verify takes it. Else ()."""
    stripped = answer.strip().strip("$").rstrip(".")
    value = plain_number(stripped.removesuffix("%").removesuffix("\\"))
    if value is None:
        return ()
    return (value, value / 100) if stripped.endswith("%") else (value,)


def _magnitude(match: re.Match[str]) -> Fraction | None:
    for top, bottom in (("top", "bottom"), ("digit_top", "digit_bottom"), ("left", "right")):
        if match[top] is not None:
            return Fraction(int(match[top]), int(match[bottom])) if int(match[bottom]) else None
    if match["whole"] is None and match["decimals"] is None and match["power"] is None:
        return None
    digits = (match["whole"] or "").replace("{,}", "").replace(",", "") + (match["decimals"] or "")
    exponent = int(match["braced"] or match["bare"] or match["exponent"] or 0)
    return Fraction(digits or "1") * Fraction(10) ** exponent


def same_number(a: Fraction, b: Fraction) -> bool:
    """Integers must be equal; else the relative difference is at most RELATIVE_TOLERANCE."""
    if a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= RELATIVE_TOLERANCE * max(abs(a), abs(b))
