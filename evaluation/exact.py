"""Whether two sympy expressions have the same value, as exactly as they are written. Only in the symbolic worker.

math-verify finds two expressions equal when their difference, chopped at 1e-15, is 0: 1/2^98 is 1/2^99 to it. Here
rational values are compared as integers, others to at least 60 digits (more where integers in them are longer), and
expressions in symbols by their values at fixed points. Only a decimal is compared to a tolerance.
"""

import math

import sympy
from sympy import Add, Expr, Float, Integer, Mul, Pow, Rational, UnevaluatedExpr
from sympy.core.function import AppliedUndef

MAX_BITS = 1 << 22  # of an integer that is written out: 1.2 million digits
MAX_DIGITS = 5_000  # to which irrational values are compared
RELATIVE_TOLERANCE = "1e-4"  # where a decimal is written, as in numerals.py
_INTEGER_ONLY = (sympy.floor, sympy.ceiling, sympy.factorial, sympy.binomial, sympy.Mod)
_CONSTANTS = {"i": sympy.I, "e": sympy.E}
_UNFOLDED = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)
_POINTS = (  # values of the first, second, ... symbol; between 0 and 1, above 1 and negative
    ("7/5", "13/11", "17/7", "5/3", "19/13", "23/17", "29/19", "31/23"),
    ("3/7", "5/11", "2/13", "8/17", "4/19", "9/23", "6/29", "10/31"),
    ("-11/3", "-7/5", "-13/9", "-17/4", "-19/8", "-23/6", "-29/10", "-31/12"),
    ("1/1009", "1/1013", "1/1019", "1/1021", "1/1031", "1/1033", "1/1039", "1/1049"),
    ("37/2", "41/3", "43/5", "47/7", "53/11", "59/13", "61/17", "67/19"),
    ("-5/8", "11/3", "-9/7", "14/5", "-3/11", "16/9", "-21/13", "22/15"),
)
_INTEGER_POINTS = (
    ("5", "3", "7", "2", "11", "4", "13", "6"),
    ("8", "5", "3", "9", "6", "7", "4", "10"),
    ("12", "9", "6", "5", "8", "3", "7", "4"),
    ("19", "8", "13", "6", "5", "10", "9", "3"),
    ("26", "14", "11", "17", "9", "12", "5", "8"),
)


class TooLarge(BaseException):
    """A number has more than MAX_BITS, or a comparison needs more than MAX_DIGITS. math-verify swallows Exceptions."""


class Undecided(Exception):
    """The values cannot be computed: undefined functions, derivatives, matrices by name."""


def equal(a: Expr, b: Expr) -> bool:
    """Whether the values of a and b are equal, at every point where both are real if they have symbols.

    Raises TooLarge, and Undecided where values cannot be computed.
    """
    percentages = [_percentage(expression) for expression in (a, b)]
    if None not in percentages:
        return equal(*percentages)
    if percentages != [None, None]:  # 50% is 0.5 and 50 where the other is no percentage
        value, other = (percentages[0], b) if percentages[1] is None else (percentages[1], a)
        return equal(value, other) or equal(value / 100, other)
    a, b = (expression.doit() if expression.has(*_UNFOLDED) else expression for expression in (a, b))
    if a.has(AppliedUndef, *_UNFOLDED) or b.has(AppliedUndef, *_UNFOLDED):
        raise Undecided
    a, b = (value.xreplace({s: _CONSTANTS.get(s.name, s) for s in value.free_symbols}) for value in (a, b))
    # By name: math-verify makes real symbols of one side and complex ones of the other where only one shows an i.
    symbols = sorted({symbol.name for symbol in a.free_symbols | b.free_symbols})
    if not symbols:
        return _same_value(a, b)
    return _same_at_points(a, b, symbols)


def _percentage(expression: Expr) -> Expr | None:
    if isinstance(expression, Mul) and UnevaluatedExpr(Rational(1, 100)) in expression.args:
        return Mul(
            *(factor for factor in expression.args if factor != UnevaluatedExpr(Rational(1, 100))), evaluate=False
        )
    return None


def _same_at_points(a: Expr, b: Expr, symbols: list[str]) -> bool:
    points = _INTEGER_POINTS if _is_of_integers(a) or _is_of_integers(b) else _POINTS
    if len(symbols) > len(points[0]):
        raise Undecided
    compared = 0
    for real in (True, False):  # complex values only where there are no real ones
        for point in points:
            values = dict(zip(symbols, map(Rational, point), strict=False))
            left, right = (_substituted(expression, values) for expression in (a, b))
            if real and not (_is_real(left) and _is_real(right)):
                continue
            if not _same_value(left, right):
                return False
            compared += 1
        if compared >= 2:
            return True
    raise Undecided


def _is_of_integers(expression: Expr) -> bool:
    """Whether its symbols can only be integers: floor(n/2), n!, (-1)^n."""
    return expression.has(*_INTEGER_ONLY) or any(
        power.base.is_negative and power.exp.free_symbols for power in expression.atoms(Pow)
    )


def _substituted(expression: Expr, values: dict[str, Rational]) -> Expr:
    if isinstance(expression, sympy.Symbol):
        return values.get(expression.name, expression)
    if not expression.args or not expression.free_symbols:
        return expression
    arguments = [_substituted(argument, values) for argument in expression.args]
    if isinstance(expression, (Add, Mul, Pow)):
        return expression.func(*arguments, evaluate=False)
    return expression.func(*arguments)


def _is_real(value: Expr) -> bool:
    if _rational(value) is not None:
        return True
    number = value.evalf(30)
    return bool(number.is_Number and number.is_finite)


def _same_value(a: Expr, b: Expr) -> bool:
    if a.has(Float) or b.has(Float):
        return _close(a, b)
    left, right = _rational(a), _rational(b)
    if left is not None and right is not None:
        return left[0] * right[1] == right[0] * left[1]
    digits = 60 + 2 * max(_digits(a), _digits(b))
    if digits > MAX_DIGITS:
        raise TooLarge
    return _near(_numeric(a, digits), _numeric(b, digits), Float(10, digits) ** (10 - digits))


def _close(a: Expr, b: Expr) -> bool:
    """As values with decimals in them, each of which stands for what rounds to it: see numerals.same_number."""
    left, right = _numeric(a, 60), _numeric(b, 60)
    if left == right or not (left.is_finite and right.is_finite):
        return bool(left == right)
    slack = max(_slack(expression, value) for expression, value in ((a, left), (b, right)))
    return _modulus(left - right) < slack * (1 - Float("1e-9")) and _near(left, right, Float(RELATIVE_TOLERANCE))


def _slack(expression: Expr, value: Expr) -> Expr:
    """How much the value changes if every decimal in it changes by a unit in its last place."""
    changed = [expression.xreplace({decimal: decimal + _step(decimal)}) for decimal in expression.atoms(Float)]
    return sum((_modulus(_numeric(other, 60) - value) for other in changed), Integer(0))


def _step(decimal: Float) -> Rational:
    """A unit in the last place of a decimal as it is written; of one that sympy has computed, what it may be off."""
    digits, _, exponent = repr(float(decimal)).partition("e")
    places = min(len(digits.partition(".")[2].rstrip("0")), 13)
    return Rational(10) ** (int(exponent or 0) - places)


def _near(a: Expr, b: Expr, tolerance: Float) -> bool:
    if not (a.is_finite and b.is_finite):
        return a == b
    size, other, difference = (_modulus(value) for value in (a, b, a - b))
    return bool(difference <= tolerance * max(size, other))


def _modulus(value: Expr) -> Expr:
    real, imaginary = value.as_real_imag()
    return sympy.sqrt(real**2 + imaginary**2) if imaginary else abs(real)


def _numeric(expression: Expr, digits: int) -> Expr:
    """The value to `digits` significant digits; 0 where all of them cancel."""
    value = expression.evalf(digits, maxn=3 * digits)
    if value.atoms(sympy.Symbol) or not value.is_number:
        raise Undecided
    return sum(
        (part * unit for part, unit in zip(map(_cancelled, value.as_real_imag()), (1, sympy.I), strict=True)),
        Integer(0),
    )


def _cancelled(value: Expr) -> Expr:
    return Integer(0) if isinstance(value, Float) and value._prec <= 1 else value


def _digits(expression: Expr) -> int:
    """Decimal digits of the longest integer in the value, written out."""
    value = _rational(expression)
    if value is not None:
        return int(max(value[0].bit_length(), value[1].bit_length()) * math.log10(2))
    return max((_digits(argument) for argument in expression.args), default=0)


def _rational(expression: Expr) -> tuple[int, int] | None:
    """(numerator, denominator > 0), not reduced, of a value made by arithmetic on rationals; None of any other."""
    if isinstance(expression, Rational):
        return int(expression.p), int(expression.q)
    if isinstance(expression, (UnevaluatedExpr, sympy.Abs, *_INTEGER_ONLY, Add, Mul, Pow)):
        values = [_rational(argument) for argument in expression.args]
        if None not in values:
            return _combined(expression, values)
    return None


def _combined(expression: Expr, values: list[tuple[int, int]]) -> tuple[int, int] | None:
    if isinstance(expression, Add):
        total = (0, 1)
        for value in values:
            total = _bounded(total[0] * value[1] + value[0] * total[1], total[1] * value[1])
        return total
    if isinstance(expression, Mul):
        product = (1, 1)
        for value in values:
            product = _bounded(product[0] * value[0], product[1] * value[1])
        return product
    if isinstance(expression, Pow):
        return _power(*values)
    first = values[0]
    if isinstance(expression, UnevaluatedExpr):
        return first
    if isinstance(expression, sympy.Abs):
        return abs(first[0]), first[1]
    if isinstance(expression, sympy.floor):
        return first[0] // first[1], 1
    if isinstance(expression, sympy.ceiling):
        return -(-first[0] // first[1]), 1
    if any(value[0] % value[1] for value in values):
        return None
    integers = [value[0] // value[1] for value in values]
    if isinstance(expression, sympy.factorial):
        return _factorial(integers[0])
    if isinstance(expression, sympy.binomial) and 0 <= integers[1] <= integers[0] <= MAX_BITS:
        return math.comb(*integers), 1
    if isinstance(expression, sympy.Mod) and integers[1]:
        return integers[0] % integers[1], 1
    return None


def _power(base: tuple[int, int], exponent: tuple[int, int]) -> tuple[int, int] | None:
    top, bottom = base
    if exponent[0] % exponent[1]:
        return None
    power = exponent[0] // exponent[1]
    if power < 0:
        top, bottom, power = (bottom, top, -power) if top > 0 else (-bottom, -top, -power)
    if bottom == 0:
        return None
    if abs(top) > 1 or bottom > 1:
        _check(max(top.bit_length(), bottom.bit_length()) * power)
    return top**power, bottom**power


def _factorial(n: int) -> tuple[int, int] | None:
    if n < 0:
        return None
    _check(n * n.bit_length())
    return math.factorial(n), 1


def _bounded(top: int, bottom: int) -> tuple[int, int]:
    _check(max(top.bit_length(), bottom.bit_length()))
    return top, bottom


def _check(bits: int) -> None:
    if bits > MAX_BITS:
        raise TooLarge
