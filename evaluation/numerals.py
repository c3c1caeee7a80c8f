"""Numbers as people write them, read exactly: mixed and repeating ones, powers of ten, other bases, words, units.

A decimal stands for a rounded number, everything else for itself. So two numbers are equal if they are exactly; where
one is written with a decimal point, if they also differ by less than a unit in its last place and by at most
RELATIVE_TOLERANCE.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from evaluation.answer_text import clean

RELATIVE_TOLERANCE = Fraction(1, 10_000)  # that of the paper's grader

_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[1-9][0-9]{0,2}(?:[ '][0-9]{3})+|[0-9]{1,400})"
_FRACTION = (
    rf"\\frac ?(?:\{{ ?(?P<top>[-+]?{_INTEGER})\.? ?\}}|(?P<digit_top>[0-9])) ?"
    rf"(?:\{{ ?(?P<bottom>[-+]?{_INTEGER})\.? ?\}}|(?P<digit_bottom>[0-9]))"
    rf"|(?P<left>{_INTEGER})\.? ?/ ?(?P<right>{_INTEGER})\.?"
)
_REPEATED = r"(?:\\(?:overline|bar|dot) ?\{ ?(?P<repeated>[0-9]{1,100}) ?\}|(?<=\.)\((?P<bracketed>[0-9]{1,100})\))"
_POWER = r"(?:10 ?\^ ?(?:\{ ?(?P<braced>[-+]?[0-9]{1,3}) ?\}|(?P<bare>-?[0-9]{1,3})))"
_DECIMAL = (
    rf"(?P<whole>{_INTEGER})?(?:\.(?P<decimals>[0-9]{{0,100}}){_REPEATED}?(?P<dots>\\[lc]?dots|\.\.\.|…)?)?"
    rf"(?: ?(?:\\times|\\cdot|\*|x)? ?{_POWER}|[eE](?P<exponent>[-+]?[0-9]{{1,3}}))?"
)
_NUMBER = re.compile(
    rf"(?P<sign>(?:[-+] ?)*)(?:(?:(?P<mixed>[0-9]{{1,100}}) ?(?=\\frac|(?<= )))?(?:{_FRACTION})|{_DECIMAL})(?![0-9.])"
)
_BASED = re.compile(
    r"(?<![A-Za-z0-9_.}\\])\(?(?P<digits>[0-9][0-9A-Z]*(?:,[0-9]{3})*(?:\.[0-9A-Z]+)?|[A-F]{2,})\)?\s*_\s*"
    r"(?:(?P<digit>[0-9])|\{\s*(?P<base>[0-9]{1,2})\s*\}|\{?\s*\\?(?:text|mathrm)?\s*\{?\s*(?P<word>[a-z]+)\s*\}{1,2})"
)
_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_NUMBER_WORD = re.compile(rf"(?:\\(?:text|mathrm) ?\{{ ?)?({'|'.join(reversed(_WORDS))})(?![a-z])", re.IGNORECASE)
_BASE_IN_WORDS = re.compile(
    r"(?<=[0-9A-F}]) ?(?:\\(?:text|mathrm) ?\{ ?)?\(?(?:in )?base[ -]?(?:\} ?)?(?P<base>[0-9]{1,2}|[a-z]+)\)?(?: ?\})?"
)
_MULTIPLIERS = {
    "dozen": 12,
    "mln": 10**6,
    "bn": 10**9,
    "hundred": 10**2,
    "thousand": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "trillion": 10**12,
}
_NAMES = "|".join(_MULTIPLIERS)
_MULTIPLIER = re.compile(
    rf"(?:\\(?:text|mathrm) ?\{{ ?({_NAMES})s?(?![a-z])[^{{}}]*\}}|(?<=[0-9}}]) ?({_NAMES})s?(?![a-z]))",
    re.IGNORECASE,
)
_CHANGES_VALUE = re.compile(  # what stands like a unit and is none
    r"(?<![a-z])(?:(?:or|and) [a-z]+|at (?:least|most)|(?:more|less|fewer|greater) than|minus|negative|not|half|halves"
    r"|thirds|quarters|factorial)(?![a-z])|, ?[a-z]|\{ ?(?:squared|cubed) ?\}",
    re.IGNORECASE,
)
_TEXTS_END = re.compile(r"\\(?:text|mathrm) ?\{[^{}]*\}$")
_UNIT_TEXT = re.compile(r"\s*(?:\\(?:text|mathrm) ?\{[^{}]*\}|[-A-Za-z/. ]|\^ ?\{?-?[0-9]\}?)*")
_ANGLE_OF = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_UNITS = {  # name: what it measures, and how much of it
    "mm": ("length", "0.001"),
    "cm": ("length", "0.01"),
    "centimeter": ("length", "0.01"),
    "m": ("length", "1"),
    "meter": ("length", "1"),
    "km": ("length", "1000"),
    "kilometer": ("length", "1000"),
    "in": ("length", "0.0254"),
    "inch": ("length", "0.0254"),
    "inche": ("length", "0.0254"),
    "ft": ("length", "0.3048"),
    "foot": ("length", "0.3048"),
    "feet": ("length", "0.3048"),
    "yd": ("length", "0.9144"),
    "yard": ("length", "0.9144"),
    "mile": ("length", "1609.344"),
    "s": ("time", "1"),
    "sec": ("time", "1"),
    "second": ("time", "1"),
    "min": ("time", "60"),
    "minute": ("time", "60"),
    "h": ("time", "3600"),
    "hr": ("time", "3600"),
    "hour": ("time", "3600"),
    "day": ("time", "86400"),
    "week": ("time", "604800"),
    "mg": ("mass", "0.001"),
    "g": ("mass", "1"),
    "gram": ("mass", "1"),
    "kg": ("mass", "1000"),
    "kilogram": ("mass", "1000"),
    "ml": ("volume", "0.001"),
    "l": ("volume", "1"),
    "liter": ("volume", "1"),
    "cent": ("money", "0.01"),
    "dollar": ("money", "1"),
}


Measured = tuple[tuple[str, int], ...]  # (("length", 1), ("time", -1)) of a speed


@dataclass(frozen=True)
class Number:
    """step: a unit in the last place of a decimal as written, else None. unit: how much of what; None: not known."""

    value: Fraction
    step: Fraction | None = None
    percent: bool = False
    unit: tuple[Fraction, Measured] | None = None

    def times(self, factor: Fraction) -> "Number":
        return replace(self, value=self.value * factor, step=None if self.step is None else self.step * factor)


@lru_cache(maxsize=1 << 16)
def read_number(answer: str) -> Number | None:
    """The number that `answer` is, with its unit, if it has one; None where it is something else than one number."""
    text = _BASE_IN_WORDS.sub(r"_{\g<base>}", clean(answer))
    text = text[1:-1] if text[:1] + text[-1:] == "()" else text
    based = _BASED.fullmatch(text)
    if based:
        return _of_base(based)
    word = _NUMBER_WORD.match(text)
    if word:
        text = str(_WORDS.index(word[1].lower())) + text[word.end() :].removesuffix("}")
    match = _NUMBER.match(text)
    number = match and _value(match)
    if number is None:
        return None
    rest = text[match.end() :]
    if rest.strip() in ("%", "°"):
        return replace(number, percent=rest.strip() == "%")
    return _with_unit(number, rest)


def plain_number(answer: str) -> Fraction | None:
    """Exact value of `read_number`, a percentage's as its number of percent."""
    number = read_number(answer)
    return None if number is None else number.value


def same_number(a: Number, b: Number) -> bool:
    """Equal as the module says. A percentage is x or x/100 where the other is none; units count where both have one."""
    if a.unit and b.unit:
        if a.unit[1] != b.unit[1]:
            return False
        a, b = a.times(a.unit[0]), b.times(b.unit[0])
    if a.percent == b.percent:
        return _close(a, b)
    percentage, other = (a, b) if a.percent else (b, a)
    return _close(percentage, other) or _close(percentage.times(Fraction(1, 100)), other)


def expanded(text: str, other: str) -> str | None:
    """`clean` LaTeX in which numbers are written as math-verify reads them; None where it would misread one.

    It ignores the base of a numeral, drops "million" as a unit and adds up any numbers that stand side by side. Degrees
    are radians in a function, and where `other` is written with \\pi and without degrees; else they are a unit.
    """
    text = _BASED.sub(_as_fraction, _BASE_IN_WORDS.sub(r"_{\g<base>}", text))
    text = re.sub(r"(\\frac|\\d?binom) ?([0-9]) ?([0-9])", r"\1{\2}{\3}", text)
    text = re.sub(r"([_^]|\\sqrt) ?([0-9])(?=[ \\])", r"\1{\2}", text)
    text = re.sub(
        r"(?<![0-9.,] )(?<![0-9.,_^])([1-9][0-9]{0,2})((?: [0-9]{3})+)(?![0-9 ]*[/0-9])",
        lambda m: m[0].replace(" ", ""),
        text,
    )
    text = re.sub(
        r"(?<![0-9.^_])([0-9]+)(?: (?=[0-9])| ?(?=\\frac))(?:([0-9]+) ?/ ?([0-9]+)|\\frac ?\{([0-9]+)\} ?\{([0-9]+)\})",
        _mixed,
        text,
    )
    text = re.sub(rf"([0-9]*)\.([0-9]*){_REPEATED}", _repeating, text)
    text = _MULTIPLIER.sub(_times, text)
    if _TEXTS_END.search(text) and _CHANGES_VALUE.search(text):
        return None
    if re.search(r"[0-9] +[0-9.]|(?<![A-Za-z0-9_.}\\])[0-9]+ ?_", text):
        return None
    if _ANGLE_OF.search(text) or ("\\pi" in other and "°" not in other):
        text = re.sub(r"([0-9.]+)°", r"(\1\\cdot \\frac{\\pi}{180})", text)
    text = re.sub(r"([0-9]+|[a-zA-Z]|\([^()]*\))!\s*\^", r"(\1!)^", text)
    return text.replace("°", "").replace("%", "\\%")


def _times(match: re.Match[str]) -> str:
    return f"\\cdot {_MULTIPLIERS[(match[1] or match[2]).lower()]}"


def _as_fraction(match: re.Match[str]) -> str:
    number = _of_base(match)
    return match[0] if number is None else _latex(number.value)


def _latex(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(match: re.Match[str]) -> str:
    whole, top, bottom = match[1], match[2] or match[4], match[3] or match[5]
    joined = "+" if _is_proper(top, bottom) else "\\cdot "
    return f"({whole}{joined}\\frac{{{top}}}{{{bottom}}})"


def _is_proper(top: str, bottom: str) -> bool:
    return top[0] != "0" and int(top) < int(bottom)


def _repeating(match: re.Match[str]) -> str:
    return _latex(_repeated(match[1], match[2], match["repeated"] or match["bracketed"]))


def _repeated(whole: str, decimals: str, repeated: str) -> Fraction:
    head = Fraction(int(whole + decimals or "0"), 10 ** len(decimals))
    return head + Fraction(int(repeated), 10 ** len(decimals) * (10 ** len(repeated) - 1))


def _of_base(match: re.Match[str]) -> Number | None:
    word = match["word"]
    base = int(match["digit"] or match["base"] or 0) if word is None else _WORDS.index(word) if word in _WORDS else 0
    whole, _, decimals = match["digits"].replace(",", "").partition(".")
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in whole + decimals):
        return None
    return Number(Fraction(int(whole + decimals, base), base ** len(decimals)))


def _value(match: re.Match[str]) -> Number | None:
    sign = (-1) ** match["sign"].count("-")
    top = match["top"] or match["digit_top"] or match["left"]
    if top is not None:
        bottom = match["bottom"] or match["digit_bottom"] or match["right"]
        top, bottom = _digits(top), _digits(bottom)
        if int(bottom) == 0 or (match["mixed"] and not _is_proper(top, bottom)):
            return None
        return Number(sign * (int(match["mixed"] or 0) + Fraction(int(top), int(bottom))))
    power = match["braced"] or match["bare"]
    whole, decimals = match["whole"], match["decimals"]
    if not (whole or decimals or power):
        return None
    scale = sign * Fraction(10) ** int(power or match["exponent"] or 0)
    whole = _digits(whole or ("" if decimals else "1"))
    repeated = match["repeated"] or match["bracketed"] or (_repeated_end(decimals) if match["dots"] else None)
    if repeated:
        decimals = decimals.removesuffix(repeated * 2)
        return Number(scale * _repeated(whole, decimals, repeated))
    step = abs(scale) / 10 ** len(decimals) if decimals else None
    return Number(scale * Fraction(f"{whole or 0}.{decimals or 0}"), step)


def _digits(integer: str) -> str:
    return integer.replace(",", "").replace(" ", "").replace("'", "")


def _repeated_end(decimals: str) -> str | None:
    """Of decimals with dots after them, what they repeat at their end at least twice ("0.333...", "0.1818...")."""
    for length in range(1, len(decimals) // 2 + 1):
        if decimals[-length:] == decimals[-2 * length : -length] and len(decimals) >= 3:
            return decimals[-length:]
    return None


def _with_unit(number: Number, rest: str) -> Number | None:
    """`number` in the unit, or of the things, that `rest` names; None where `rest` is something else."""
    if not rest:
        return number
    if not _UNIT_TEXT.fullmatch(rest) or _CHANGES_VALUE.search(rest):
        return None
    wrapped = "\\" in rest
    words = re.sub(r"\\(?:text|mathrm) ?\{([^{}]*)\}", r" \1 ", rest).replace("{", "").replace("}", "").split()
    while words and words[0].lower().removesuffix("s") in _MULTIPLIERS:
        number = number.times(Fraction(_MULTIPLIERS[words.pop(0).lower().removesuffix("s")]))
    if not wrapped and not all(re.fullmatch(r"[A-Za-z]{3,}[-A-Za-z.]*", word) or _unit(word) for word in words):
        return None
    if not wrapped and set(words) & {"sin", "cos", "tan", "log", "ln", "exp", "mod", "if", "in", "not", "pi"}:
        return None
    if not wrapped and rest[0] != " ":
        return None  # 5m is a product
    return replace(number, unit=_unit(" ".join(words)))


def _unit(text: str) -> tuple[Fraction, Measured] | None:
    """How much of what a unit such as "cm^2", "square feet" or "km per hour" is; None where it is not in the table."""
    factor, powers = Fraction(1), {}
    for position, part in enumerate(re.split(r"/| per ", text)):
        match = re.fullmatch(
            r"\s*(square |sq\.? |cubic )?\s*([A-Za-z]+)\.?\s*(?:\^ ?(-?[1-9])| squared| cubed)?\s*", part
        )
        name = match and (
            match[2] if len(match[2]) == 1 else match[2].lower().replace("metre", "meter").replace("litre", "liter")
        )
        if not name or (name not in _UNITS and name.removesuffix("s") not in _UNITS):
            return None
        measured, size = _UNITS[name] if name in _UNITS else _UNITS[name.removesuffix("s")]
        power = (
            2 if (match[1] or "").startswith("sq") or "squared" in part else 3 if "cub" in part else int(match[3] or 1)
        )
        power = -power if position else power
        factor *= Fraction(size) ** power
        powers[measured] = powers.get(measured, 0) + power
    return factor, tuple(sorted(powers.items()))


def _close(a: Number, b: Number) -> bool:
    steps = [number.step for number in (a, b) if number.step is not None]
    if not steps or a.value.denominator == b.value.denominator == 1:
        return a.value == b.value
    difference = abs(a.value - b.value)
    return difference < max(steps) and difference <= RELATIVE_TOLERANCE * max(abs(a.value), abs(b.value))
